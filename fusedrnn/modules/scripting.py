"""What torch.jit.script is told about a fused module."""

from __future__ import annotations

from typing import NoReturn


class NotScriptable:
    """Says what serves in the place of torch.jit.script, which knows none of the kernels."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"torch.jit.script does not compile fusedrnn.{type(self).__name__}: use torch.export or torch.jit.trace, "
            "or script a copy on nn.*, torch.jit.script(fusedrnn.unfuse(copy.deepcopy(model)))"
        )
