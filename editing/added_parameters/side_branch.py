"""A branch beside an MLP: more is added to what its value matrix gives, from what enters the MLP.

    y = W k + b + increment(x)       x enters the MLP (after the norm before it), y leaves its last matrix
It acts at every token. Where a family normalises after the MLP the increment passes through that norm, as
every neuron's own contribution does. Branches of several edits add up and come off in any order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from editing.added_parameters.passing import Noted
from editing.attachment import Attachment
from tracer.errors import AnatomyError
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.sweep.hooks import only_here

# T5's "hidden_act", where it has one, is not what its MLPs use.
_ACTIVATIONS = ("dense_act_fn", "hidden_activation", "hidden_act", "activation_function", "activation")


class SideBranch(Attachment):
    """An attachment at the MLP of one layer.

    Attributes:
        layer: which.
        act: the name of the branch's activation function.
    """

    layer: int
    act: str

    @abstractmethod
    def increment(self, entering: Tensor) -> Tensor:
        """What is added for `entering` [..., d_model]; like it in shape, float32 or wider."""

    def about(self) -> dict[str, Any]:
        """The layer and the activation function."""
        return {"layer": self.layer, "act": self.act}

    def attach(self, model: LanguageModel) -> Callable[[], None]:
        """Adds the increment from now on."""
        return add_branch(model, self.layer, self.increment)


def add_branch(
    model: LanguageModel, layer: int, increment: Callable[[Tensor], Tensor], *, here: bool = False
) -> Callable[[], None]:
    """Adds `increment` of what enters an MLP to what its value matrix gives; what is returned ends that.

    Args:
        model: the model.
        layer: of the MLP.
        increment: of [..., d_model], which it gets in float32 or wider.
        here: in this thread alone.

    Raises:
        AnatomyError: this family's MLP has no value matrix, or it is not known where it begins.
    """
    matrix = model.anatomy.value_matrix(layer)
    entering = Noted(model.anatomy.mlp_entrance(layer), lambda hidden: hidden)

    def hook(_matrix: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + increment(wide(entering.value)).reshape(output.shape).to(output.dtype)

    handle = matrix.register_forward_hook(only_here(hook) if here else hook)

    def remove() -> None:
        handle.remove()
        entering.remove()

    return remove


def check_place(model: LanguageModel, layer: int) -> None:
    """Raises AnatomyError where an MLP has no value matrix, or it is not known where it begins."""
    model.anatomy.value_matrix(layer)
    model.anatomy.mlp_entrance(layer)


def model_activation(model: LanguageModel) -> str:
    """The name of the MLP's own activation function, as transformers knows it.

    Raises:
        AnatomyError: the configuration does not say.
    """
    config = model.torch.config.get_text_config()
    said = [getattr(config, name) for name in _ACTIVATIONS if isinstance(getattr(config, name, None), str)]
    if not said or said[0] not in ACT2FN:
        raise AnatomyError(f'The configuration of {model.name} names no activation function. Write act="relu".')
    return said[0]


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name."""
    return ACT2FN[name]
