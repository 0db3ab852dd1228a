"""Cut one large model over several processes: tensor parallelism of transformers, started by torchrun.

    torchrun --nproc-per-node 2 script.py
Every process runs the same script and holds a slice of each large matrix; what crosses a block's
boundary is whole in all of them, so each traces the same maps. Embeddings stay whole, because a
corruption changes what they give; so does a head that is the same matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnsight import TransformersModel
from nnsight.modeling.tp import UnshardableCheckpoint, check_tp_request
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import parallel_utils, tensor_parallel
from transformers.distributed.configuration_utils import DistributedConfig

from tracer.errors import ModelSourceError

# A rule of transformers that cuts nothing, and that nnsight knows.
_WHOLE = "replicated_with_grad_allreduce"


def parallel_plan(place: str) -> DistributedConfig:
    """How transformers is to cut the model at `place` over the processes that torchrun started.

    Raises:
        ModelSourceError: torchrun did not start this process, or the model cannot be cut into as many slices.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 2 or "RANK" not in os.environ:
        raise ModelSourceError(
            "tensor_parallel=True cuts a model over the processes that torchrun starts, and there is only this one. "
            'Start the script with torchrun --nproc-per-node 2 script.py; or write device="auto" in one process.'
        )
    config = AutoConfig.from_pretrained(place)
    try:
        check_tp_request(config, processes)
    except UnshardableCheckpoint as error:
        raise ModelSourceError(
            f"A model of type {config.model_type!r} with these sizes cannot be cut into {processes} slices: its heads "
            f"and its MLP's width must be multiples of that, and transformers must know how (GPT-2 has no such plan). "
            f'Start fewer processes, or one with device="auto".'
        ) from error
    return DistributedConfig(tp_size=processes, tp_plan=dict.fromkeys(_kept_whole(config), _WHOLE))


def _kept_whole(config: Any) -> list[str]:
    """The names of the embedding, and of the head if it shares its weight."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return [name for name, module in model.named_modules() if module is embedding or (tied and module is head)]


def sharded_nnsight(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TransformersModel:
    """The sharded model wrapped by nnsight, which shows values whole."""
    if tokenizer is None:
        raise ModelSourceError(
            "A model that is cut over processes needs its tokenizer: write load(model, tokenizer=...)."
        )
    with _plan_where_nnsight_looks():
        return TransformersModel(model, tokenizer=tokenizer)


@contextmanager
def _plan_where_nnsight_looks() -> Iterator[None]:
    """While the block runs, transformers' reader of plans is also at its former place, where nnsight 0.8.1 looks."""
    name = "_get_parameter_plan"
    if hasattr(tensor_parallel, name):
        yield
        return
    setattr(tensor_parallel, name, getattr(parallel_utils, name))
    try:
        yield
    finally:
        delattr(tensor_parallel, name)
