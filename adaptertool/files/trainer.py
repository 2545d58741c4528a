"""What trainers leave beside a model and is no part of it, known by the names that they give it."""

from __future__ import annotations

from adaptertool.patterns import regex

# transformers, accelerate, DeepSpeed, FSDP, TensorBoard
_FILES = regex(
    r"optimizer(_\d+)?\.(pt|bin)|scheduler(_\d+)?\.(pt|bin)|scaler\.pt|rng_state.*\.pth|random_states_\d+\.pkl"
    r"|sampler(_\d+)?\.bin|dl_state_dict(_\d+)?\.bin|trainer_state\.json|training_args\.bin|zero_to_fp32\.py|latest"
    r"|.*\.distcp|(.*\.)?events\.out\.tfevents\..*"
)
_FOLDERS = regex(
    r"(tmp-)?checkpoint-\d+|global_step\d+|optimizer_\d+|pytorch_model_fsdp_\d+|runs|logs|wandb|mlruns|tensorboard"
    r"|lightning_logs|__pycache__"
)


def is_trainer_file(name: str) -> bool:
    return _FILES.fullmatch(name) is not None


def is_trainer_folder(name: str) -> bool:
    return _FOLDERS.fullmatch(name) is not None
