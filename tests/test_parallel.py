"""Jobs on threads: all end together, by an error or Ctrl-C, and want of memory is told from other errors."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from toys import IDS, gpt2

import tracer
from tracer.model.parallel import in_threads, is_out_of_memory
from tracer.sweep import Sweep
from tracer.sweep.packed_blocks import PackedBlocks


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_first_error_or_ctrl_c_stops_the_other_jobs(error: type[BaseException]) -> None:
    before, waiting, begun, ended = torch.get_num_threads(), threading.Event(), [], []

    def interrupted(_check) -> None:
        waiting.wait(60)
        raise error

    def endless(check) -> None:
        begun.append(check)
        waiting.set()
        try:
            while True:
                check()
        finally:
            ended.append(check)

    with pytest.raises(error):
        in_threads([interrupted, endless, endless, endless], 2)
    assert begun and ended == begun
    assert torch.get_num_threads() == before


def test_ctrl_c_ends_a_threaded_sweep_between_two_calls_of_a_block(monkeypatch) -> None:
    model = tracer.load(gpt2(n_layers=8), check=False)
    sweep = Sweep(model, IDS, (1, 3), torch.ones(4, 2, 16).double())
    whole, called, other_walks = sweep.state_map(5, [1, 2, 3]), [], threading.Event()
    monkeypatch.setattr("tracer.sweep.batch_sweep.thread_count", lambda device, n_jobs: 2)
    original, owner = sweep.batch.blocks.run, []

    def block(_blocks, layer, packing, draws):
        owner.append(threading.get_ident())
        if owner[0] == threading.get_ident():
            other_walks.wait(60)
            raise KeyboardInterrupt
        run = original(layer, packing, draws)

        def slow(hidden, which):
            called.append(layer)
            other_walks.set()
            time.sleep(0.1)  # for Ctrl-C to come meanwhile
            return run(hidden, which)

        return slow

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PackedBlocks, "run", block)
        sweep.state_map(5, [1, 2, 3])
    assert 0 < len(called) < 4 and max(called) < model.n_layers - 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.torch.modules())
    torch.testing.assert_close(sweep.state_map(5, [1, 2, 3]), whole, atol=1e-12, rtol=0)


def test_want_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)  # what PyTorch itself says on a CPU
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyboardInterrupt())


def test_want_of_memory_that_cannot_be_helped_is_raised(monkeypatch) -> None:
    sweep = Sweep(tracer.load(gpt2(), check=False), IDS, (1, 3), torch.ones(2, 2, 16).double())
    tried = []

    def full(*_):
        tried.append(sweep.batch.budget.packed_tokens)
        raise MemoryError

    monkeypatch.setattr(PackedBlocks, "run", full)
    with pytest.raises(MemoryError):
        sweep.state_map(5, [1, 2, 3])
    assert tried[-1] == 1 and sorted(tried, reverse=True) == tried
