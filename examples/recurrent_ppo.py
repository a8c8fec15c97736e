"""Trains an agent with a memory by PPO, and re-evaluates whole rollouts in one call although episodes end inside.

python examples/recurrent_ppo.py

The world is made here: a corridor of random length with a sign at its entrance, which says which of four doors at its
end leads on. A network without memory opens the right one in a quarter of the episodes. Agents act step by step and
carry their state; each update runs over [T, B] steps at once, and `resets=` zeroes the state where an episode begins.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

import fusedrnn

DOORS, SHORTEST, LONGEST = 4, 4, 20  # steps of an episode
T, B = 32, 64
DISCOUNT, TRACE, CLIP, EPOCHS = 0.95, 0.95, 0.2, 4


class Corridors:
    """B corridors. What is seen of each, ``[B, DOORS + 1]``: the sign, in the first step alone, and whether one stands
    before the doors, where the action counts."""

    def __init__(self) -> None:
        self.door, self.left = self._draw(DOORS), self._draw(LONGEST)  # steps left; in the middle of episodes
        self.begins = torch.zeros(B, dtype=torch.bool)

    def _draw(self, high: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, (B,))

    def observe(self) -> Tensor:
        sign = F.one_hot(self.door, DOORS) * self.begins[:, None]
        return torch.cat((sign, (self.left == 0)[:, None]), 1).float()

    def step(self, action: Tensor) -> Tensor:
        """Walks on or opens a door, behind which the next episode begins. Returns 1 where it was the right one."""
        self.begins = self.left == 0
        reward = (self.begins & (action == self.door)).float()
        self.door = torch.where(self.begins, self._draw(DOORS), self.door)
        self.left = torch.where(self.begins, self._draw(LONGEST, SHORTEST - 1), self.left - 1)
        return reward


class Agent(nn.Module):
    """Reads ``[T, B, DOORS + 1]`` and says at each step which action it would take, and the return that it expects."""

    def __init__(self, rnn: Callable[[int, int], nn.Module], hidden_size: int = 64) -> None:
        super().__init__()
        self.rnn = rnn(DOORS + 1, hidden_size)
        self.policy, self.value = nn.Linear(hidden_size, DOORS), nn.Linear(hidden_size, 1)

    def forward(self, seen: Tensor, begins: Tensor, state: Any) -> tuple[Categorical, Tensor, Any]:
        y, state = self.rnn(seen, state, resets=begins)
        return Categorical(logits=self.policy(y)), self.value(y).squeeze(-1), state


class Rollout(NamedTuple):
    """T steps of B corridors, each ``[T, B]`` or ``[T, B, DOORS + 1]``, and the agent's state before the first."""

    state: Any
    seen: Tensor
    begins: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    success: float


@torch.no_grad()
def collect(agent: Agent, world: Corridors, state: Any) -> tuple[Rollout, Any]:
    """Acts for T steps, one call each, and carries the state on. Advantages: Schulman et al. (2016)."""
    start, steps, rewards = state, [], []
    for _ in range(T):
        seen, begins = world.observe(), world.begins
        policy, value, state = agent(seen[None], begins[None], state)
        action = policy.sample()
        steps.append((seen, begins, action[0], policy.log_prob(action)[0], value[0]))
        rewards.append(world.step(action[0]))
    seen, begins, action, log_prob, value = map(torch.stack, zip(*steps, strict=True))
    next_begins = torch.cat((begins[1:], world.begins[None]))
    next_value = torch.cat((value[1:], agent(world.observe()[None], world.begins[None], state)[1]))
    goes_on = DISCOUNT * ~next_begins
    advantage = torch.stack(rewards) + goes_on * next_value - value
    for t in reversed(range(T - 1)):
        advantage[t] += TRACE * goes_on[t] * advantage[t + 1]
    success = torch.stack(rewards).sum() / next_begins.sum()
    return Rollout(start, seen, begins, action, log_prob, advantage, advantage + value, success.item()), state


def loss_of(agent: Agent, rollout: Rollout) -> Tensor:
    """The clipped objective (Schulman et al. 2017). No gradient passes the beginning of the rollout: truncated BPTT."""
    policy, value, _ = agent(rollout.seen, rollout.begins, rollout.state)
    ratio = (policy.log_prob(rollout.action) - rollout.log_prob).exp()
    advantage = (rollout.advantage - rollout.advantage.mean()) / (rollout.advantage.std() + 1e-8)
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
    return F.mse_loss(value, rollout.target) / 2 - gain - 0.01 * policy.entropy().mean()


def update(agent: Agent, rollout: Rollout, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss_of(agent, rollout).backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()


class Loop(nn.Module):
    """What nn.LSTM and nn.GRU need for the same: a call for each step, before which states are zeroed."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, state: Any, *, resets: Tensor) -> tuple[Tensor, Any]:
        ys = []
        for x_t, resets_t in zip(x.split(1), resets, strict=True):
            keep = (~resets_t)[None, :, None]
            state = tuple(keep * s for s in state) if isinstance(state, tuple) else keep * state
            y, state = self.rnn(x_t, state)
            ys.append(y)
        return torch.cat(ys), state


def compare(agent: Agent, rollout: Rollout) -> None:
    """Prints how long a rollout takes in one call and in a loop, and how far the gradients differ."""
    looping = fusedrnn.unfuse(copy.deepcopy(agent))  # the layer becomes that of torch.nn, with the same weights
    looping.rnn = Loop(looping.rnn)

    def gradients(agent: Agent) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss_of(agent, rollout), list(agent.parameters()))

    times: dict[Agent, list[float]] = {agent: [], looping: []}
    for _ in range(10):
        for which, taken in times.items():  # in turn: what else the machine does falls on both
            start = time.perf_counter()
            gradients(which)
            taken.append((time.perf_counter() - start) * 1e3)
    one, loop = map(statistics.median, times.values())
    ours, theirs = (torch.cat([g.flatten() for g in gradients(which)]) for which in times)
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"loss and gradients of a rollout: {one:.1f} ms in one call, {loop:.1f} ms in a loop over nn.*")
    print(f"their gradients differ by {difference:.0e} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an agent that must remember, by PPO.")
    parser.add_argument("--cell", choices=("gru", "lstm"), default="lstm")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    agent = Agent({"gru": fusedrnn.GRU, "lstm": fusedrnn.LSTM}[options.cell])
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    zeros = torch.zeros(1, B, agent.rnn.hidden_size)
    world, state = Corridors(), (zeros, zeros) if options.cell == "lstm" else zeros

    rollout, state = collect(agent, world, state)
    print(f"opens the right door before training: {rollout.success:.3f} (chance: {1 / DOORS})")
    for n in range(1, options.updates + 1):
        update(agent, rollout, optimizer)
        rollout, state = collect(agent, world, state)
        if n % 25 == 0:
            print(f"update {n}: {rollout.success:.3f}")
    print(f"opens the right door after training: {rollout.success:.3f}")
    compare(agent, rollout)


if __name__ == "__main__":
    main()
