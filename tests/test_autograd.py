"""Derivatives of every order and in both modes, by finite differences and through torch.func."""

from __future__ import annotations

import pytest
import torch
from op_cases import Arguments, arguments
from torch.autograd import gradcheck, gradgradcheck

from fusedrnn import network, reference
from fusedrnn.autograd import FUNCTIONS
from fusedrnn.ops import CELLS, SAVING

each_cell = pytest.mark.parametrize("cell", CELLS)
each_layout = pytest.mark.parametrize(
    "layout", [(False, False), (True, True)], ids=["time-first", "batch-first-reverse"]
)
each_path = pytest.mark.parametrize("path", ["function", "operator"])


def runner(path, cell, args, layout):
    """Outputs as a function of the tensors that are given, through the Function or through the operator."""

    def run(*given):
        rest = iter(given)
        full = Arguments(*(None if t is None else next(rest) for t in args))
        flags = (None, *layout, False)
        out = SAVING[cell](*full, *flags) if path == "operator" else FUNCTIONS[cell].apply(cell, *full, *flags)
        return out[:3] if CELLS[cell].states == 2 else out[:2]

    return run


def plain(cell, args, layout):
    """The same by the reference."""

    def run(*given):
        rest = iter(given)
        x, h0, c0, *weights = (None if t is None else next(rest) for t in args)
        y, states = reference.layer(cell, x, (h0,) if c0 is None else (h0, c0), weights, *layout)
        return (y, *states)

    return run


@each_cell
@each_layout
@each_path
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_gradients_agree_with_finite_differences(cell, layout, path, bias):
    args = arguments(cell, (3, 2, 3, 4), batch_first=layout[0], bias=bias, requires_grad=True)
    assert gradcheck(runner(path, cell, args, layout), args.given())


@each_cell
@each_layout
@each_path
def test_second_derivatives_agree_with_finite_differences(cell, layout, path):
    args = arguments(cell, (2, 2, 2, 3), batch_first=layout[0], requires_grad=True)
    assert gradgradcheck(runner(path, cell, args, layout), args.given(), fast_mode=True)


@each_cell
def test_forward_mode_agrees_with_finite_differences(cell):
    args = arguments(cell, (3, 2, 3, 4), requires_grad=True)

    def run(*given):
        rest = iter(given)
        x, h0, c0, *weights = (None if t is None else next(rest) for t in args)
        return network.layer(cell, x, (h0,) if c0 is None else (h0, c0), weights)

    assert gradcheck(run, args.given(), check_forward_ad=True, check_backward_ad=False)


@each_cell
@each_path
def test_third_derivatives_agree_with_the_reference(cell, path):
    layout = (False, False)
    args = arguments(cell, (2, 1, 2, 2), requires_grad=True)

    def third(run):
        value = run(*args.given())[0].sin().sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, [args.x, args.w_hh], create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        return value.detach()

    torch.testing.assert_close(third(runner(path, cell, args, layout)), third(plain(cell, args, layout)))


@each_path
@pytest.mark.parametrize(
    "cell, used",
    [(cell, used) for cell in CELLS for used in ((0,), (1,), (2,), (1, 2)) if max(used) <= CELLS[cell].states],
)
def test_gradients_of_some_outputs_only_agree_with_the_reference(cell, path, used):
    args = arguments(cell, (4, 3, 2, 5), requires_grad=True)

    def grads(run):
        out = run(*args.given())
        return torch.autograd.grad(sum(out[i].sin().sum() for i in used), args.given())

    torch.testing.assert_close(
        grads(runner(path, cell, args, (False, False))), grads(plain(cell, args, (False, False)))
    )


@each_cell
@pytest.mark.parametrize("name", ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"])
def test_gradient_of_one_argument_alone_agrees_with_the_reference(cell, name):
    args = arguments(cell, (4, 3, 2, 5), batch_first=True)
    one = getattr(args, name).requires_grad_()

    def grad(run):
        return torch.autograd.grad(run(*args.given())[0].sin().sum(), one)

    torch.testing.assert_close(
        grad(runner("function", cell, args, (True, False))), grad(plain(cell, args, (True, False)))
    )


def network_loss(cell, run, x, weights):
    states = tuple(x.new_zeros(x.shape[1], weights[1].shape[1]) for _ in range(CELLS[cell].states))
    return run(cell, x, states, weights)[0].sin().sum()


@each_cell
def test_per_sample_gradients_agree_with_one_call_per_sample(cell):
    args = arguments(cell, (3, 2, 4, 5))
    samples = torch.randn(3, *args.x.shape, dtype=torch.float64)
    weights = tuple(args[3:])

    def loss(weights, x):
        return network_loss(cell, network.layer, x, weights)

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, samples)
    for i, x in enumerate(samples):
        alone = torch.func.grad(lambda w, x=x: network_loss(cell, reference.layer, x, w))(weights)
        torch.testing.assert_close(tuple(g[i] for g in together), alone)


@each_cell
def test_a_vmapped_ensemble_of_weights_agrees_with_one_call_per_member(cell):
    args = arguments(cell, (3, 2, 4, 5))
    members = tuple(torch.stack([w, 2 * w, w - 0.1]) for w in args[3:])

    def loss(*weights):
        return network_loss(cell, network.layer, args.x, weights)

    together = torch.func.vmap(loss)(*members)
    for i in range(3):
        alone = network_loss(cell, reference.layer, args.x, tuple(m[i] for m in members))
        torch.testing.assert_close(together[i], alone)


@each_cell
def test_nested_gradients_and_jvp_of_torch_func_agree_with_the_reference(cell):
    args = arguments(cell, (3, 2, 4, 5))
    tangent = torch.randn_like(args.x)

    def results(run):
        def loss(x):
            return network_loss(cell, run, x, tuple(args[3:]))

        nested = torch.func.grad(lambda x: torch.func.grad(loss)(x).sin().sum())(args.x)
        return nested, torch.func.jvp(loss, (args.x,), (tangent,))

    torch.testing.assert_close(results(network.layer), results(reference.layer))


NESTED = {
    "jvp of jvp": lambda f, x, v: torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (v,))[1], (x,), (v,))[1],
    "jvp of grad": lambda f, x, v: torch.func.jvp(torch.func.grad(f), (x,), (v,))[1],
    "grad of jvp": lambda f, x, v: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (v,))[1])(x),
    "hessian": lambda f, x, v: torch.func.hessian(f)(x),
    "jacfwd": lambda f, x, v: torch.func.jacfwd(f)(x),
    "jacrev of jacrev": lambda f, x, v: torch.func.jacrev(torch.func.jacrev(f))(x),
}


@each_cell
@pytest.mark.parametrize("transform", NESTED)
def test_nested_transforms_agree_with_the_reference(cell, transform):
    args = arguments(cell, (3, 2, 2, 3))
    v = torch.randn_like(args.x)

    def result(run):
        return NESTED[transform](lambda x: network_loss(cell, run, x, tuple(args[3:])), args.x, v)

    torch.testing.assert_close(result(network.layer), result(reference.layer))


@each_cell
def test_jvp_inside_a_compiled_function_agrees_with_the_reference(cell, fresh_dynamo):
    args = arguments(cell, (3, 2, 2, 3))
    v = torch.randn_like(args.x)

    def push(run):
        return lambda x: torch.func.jvp(lambda x: network_loss(cell, run, x, tuple(args[3:])), (x,), (v,))[1]

    compiled = torch.compile(push(network.layer), backend="aot_eager")
    torch.testing.assert_close(compiled(args.x), push(reference.layer)(args.x))


@each_cell
def test_first_gradients_run_the_fused_backward_also_under_create_graph(cell):
    args = arguments(cell, (3, 2, 4, 5), requires_grad=True)
    y = runner("function", cell, args, (False, False))(*args.given())[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(y.sum(), args.given(), create_graph=True)
    names = [event.name for event in profile.events()]
    assert names.count(f"fusedrnn::{cell}_backward") == 1
    assert not any(name in ("aten::sigmoid", "aten::tanh", "aten::relu") for name in names)
