"""Change a fact in a language model: editors behind one contract, edits that can be undone."""

from editing.added_parameters.calibration import Calibration, calibrate
from editing.added_parameters.calinet import CaliNet
from editing.added_parameters.detection import Known, known, unrelated_templates
from editing.added_parameters.grace import GRACE
from editing.added_parameters.t_patcher import TPatcher
from editing.edit import Edit, undo_all, unedited
from editing.edit_file import load_edit
from editing.errors import (
    BaseModelError,
    CovarianceError,
    EditFailedError,
    EditingError,
    EditingWarning,
    EditOrderError,
    RequestError,
)
from editing.fine_tuning.ft import FT
from editing.layer_check.check import LayerCheck, check_by_editing
from editing.locate_then_edit.alphaedit import AlphaEdit
from editing.locate_then_edit.emmet import EMMET
from editing.locate_then_edit.kn import KN
from editing.locate_then_edit.memit import MEMIT, layers_around
from editing.locate_then_edit.pmet import PMET
from editing.locate_then_edit.rome import ROME
from editing.lora import to_peft
from editing.memory import IKE, SERAC, MeLLo, MemPrompt
from editing.meta_learning.ke import KE
from editing.meta_learning.mend import MEND
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.readers import training_records
from editing.meta_learning.records import TrainingRecord
from editing.model_folder import merge, unmerge
from editing.request import EditRequest
from editing.scoring.generation import complete
from editing.training.plot import plot_training

__all__ = [
    "EMMET",
    "FT",
    "GRACE",
    "IKE",
    "KE",
    "KN",
    "MEMIT",
    "MEND",
    "PMET",
    "ROME",
    "SERAC",
    "AlphaEdit",
    "BaseModelError",
    "CaliNet",
    "Calibration",
    "CovarianceError",
    "Edit",
    "EditFailedError",
    "EditOrderError",
    "EditRequest",
    "EditingError",
    "EditingWarning",
    "Known",
    "LayerCheck",
    "MeLLo",
    "MemPrompt",
    "RequestError",
    "TPatcher",
    "TrainingPlan",
    "TrainingRecord",
    "calibrate",
    "check_by_editing",
    "complete",
    "known",
    "layers_around",
    "load_edit",
    "merge",
    "plot_training",
    "to_peft",
    "training_records",
    "undo_all",
    "unedited",
    "unmerge",
    "unrelated_templates",
]
