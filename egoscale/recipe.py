"""Recipes: TOML read into frozen models, checked key by key, hashed.

A recipe says what one stage does (`stage = "world"`), or what a sweep is (`stage = "sweep"`). Each key
carries its unit in its name (`_s`, `_hours`, `_frames`, `_px`, `_hz`, `_m`) or is a count (`num_`). Nothing
in a recipe names a class or a path of code: a choice is a word from a list.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from egoscale.definition import RecipeError, assigned, load_toml, merged, to_toml

__all__ = ["RecipeError", "load_recipe", "load_toml", "recipe_hash", "resolved_toml", "validate"]

SCHEMA_VERSION = 1  # part of every run key: raise it when a stage's meaning changes without its recipe


class Spec(BaseModel):
    """A frozen table of a recipe; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


MAX_NAME = 80  # characters; a file's name has 255 bytes, and others are made of it


def _name(value: str) -> str:
    # "." and ".." are folders of others; what is not a letter or digit may mean something to a shell.
    if not re.fullmatch(r"[^\W_][\w.-]*", value) or len(value) > MAX_NAME:
        raise ValueError(
            f"a name has 1 to {MAX_NAME} letters, digits and `_`, `.`, `-`, and begins with a letter or digit"
        )
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


# --- training, shared by every stage that trains ------------------------------------------------------------


class TrainSpec(Spec):
    """How a model is trained. The DeepSpeed configuration is derived from this table and nothing else."""

    num_steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(gt=0, description="samples in the global batch, whatever the number of ranks")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per rank and backward pass")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: Count = 20
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    decay_fraction: Fraction = 0.2  # share of the steps that "wsd" spends decaying
    weight_decay: float = Field(0.01, ge=0)
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    epsilon: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 autocast where the device has instructions for it
    zero_stage: Literal[0, 1, 2, 3] = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = Field(0.02, gt=0, description="of matrices inside blocks, with optimizer = muon")
    offload: Literal["none", "optimizer", "parameters"] = "none"  # to the host's memory
    checkpoint_activations: Literal["none", "alternate", "all"] = "none"  # blocks that are computed again backwards
    compile: bool = Field(False, description="torch.compile, block by block")
    save_every_steps: int = Field(200, gt=0)
    keep_last: int = Field(2, gt=0, description="checkpoints kept")
    keep_every_steps: Count = 0  # every checkpoint of a multiple of it is kept too; 0 = none
    log_every_steps: int = Field(20, gt=0)
    on_bad_step: Literal["skip", "stop"] = "skip"  # a non-finite loss or gradient
    max_bad_steps: Count = 10  # of them that are skipped and counted, then it stops
    spike_deviations: float = Field(6.0, ge=0, description="a loss so far above its last 128 is noted; 0 = never")
    hang_timeout_s: float = Field(1800.0, ge=0, description="a step that takes longer ends the run; 0 = never")
    stop_before_limit_s: float = Field(180.0, ge=0, description="save and requeue so long before Slurm's time limit")
    deepspeed: dict[str, object] = Field(default_factory=dict, description="merged over the derived JSON")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.offload != "none" and self.zero_stage < (lowest := {"optimizer": 1, "parameters": 3}[self.offload]):
            held = "the whole optimizer is" if self.zero_stage == 0 else "whole weights are"
            raise ValueError(
                f'offload = "{self.offload}" with zero_stage = {self.zero_stage}, where {held} on every rank: '
                f"set zero_stage to {lowest}{'' if lowest == 3 else ' or more'}, or offload to "
                f'"{"optimizer" if self.zero_stage else "none"}"'
            )
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide batch_size = {self.batch_size}, on any "
                "number of ranks: batch_size = micro_batch_size x accumulation x ranks"
            )
        return self


# --- models: keyword arguments of the classes in egoscale.models --------------------------------------------


class BlockSpec(Spec):
    """Size of a stack of space-time blocks (`models/blocks.py`)."""

    width: int = Field(96, gt=0)
    num_layers: int = Field(3, gt=0)
    num_heads: int = Field(4, gt=0)
    num_kv_heads: int = Field(2, gt=0)
    temporal_every: int = Field(2, ge=0, description="temporal attention in every k-th layer; 0 = never")
    num_registers: Count = 2


class VideoTokenizerSpec(Spec):
    """Causal masked autoencoder: patches to `num_latents` tokens of `latent_dim` numbers per frame."""

    kind: Literal["masked-autoencoder"] = "masked-autoencoder"
    image_size_px: int = Field(64, gt=0)
    patch_size_px: int = Field(8, gt=0)
    num_latents: int = Field(64, gt=0)
    latent_dim: int = Field(16, gt=0)
    max_mask_fraction: Fraction = 0.75
    encoder: BlockSpec = BlockSpec()
    decoder: BlockSpec = BlockSpec()


class LatentActionSpec(Spec):
    """What changed between two frames, as `action_dim` numbers."""

    bottleneck: Literal["gaussian", "fsq"] = "gaussian"
    action_dim: int = Field(32, gt=0)
    beta: float = Field(3e-4, ge=0, description="weight of the KL term at the end of the anneal")
    beta_warmup_fraction: Fraction = 0.3
    free_bits_nats: float = Field(0.02, ge=0, description="KL of a pair, per dimension, that costs nothing")
    fsq_levels: int = Field(5, ge=2)
    changed_weight: float = Field(10.0, ge=1, description="weight of what moved against what did not")
    encoder: BlockSpec = BlockSpec(width=64, num_layers=2)
    decoder: BlockSpec = BlockSpec(width=64, num_layers=2)


class WorldSpec(Spec):
    """Block-causal diffusion transformer over latents, with agent tokens that read an instruction."""

    blocks: BlockSpec = BlockSpec()
    context_frames: int = Field(4, ge=2)
    num_agent_tokens: int = Field(4, gt=0)
    vocabulary_size: int = Field(512, gt=0, description="hash buckets for the words of an instruction")
    max_words: int = Field(8, gt=0)
    sampling_steps: int = Field(4, gt=0)
    agent_loss_weight: float = Field(1.0, ge=0)
    shortcut_fraction: Fraction = 0.25


class PolicySpec(Spec):
    """Narrow head: predicted latent action + proprioception -> a chunk of relative motor commands."""

    hidden_width: int = Field(64, gt=0)
    num_hidden_layers: Count = 1
    chunk_steps: int = Field(4, gt=0, description="motor commands per prediction")
    interface: Literal["latent-action", "features"] = "latent-action"


# --- stages -------------------------------------------------------------------------------------------------


class FilmRecipe(Spec):
    """Render simulated first-person human video to disk, as a data set of mp4 files with a metadata table."""

    stage: Literal["film"] = "film"
    world: Literal["tabletop"] = "tabletop"
    hours: float = Field(gt=0)
    num_participants: int = Field(24, gt=0)
    num_scenes: int = Field(12, gt=0)
    takes_per_recording: int = Field(8, gt=0, description="takes share participant, scene and camera")
    fps_hz: int = Field(5, gt=0)
    image_size_px: int = Field(64, gt=0)
    camera_sway: float = Field(0.15, ge=0, description="1 = head moves as in free viewing, 0 = tripod")
    hand_noise_m: float = Field(0.01, ge=0, description="standard deviation of the tracked hand position")
    colours: tuple[str, ...] = ("red", "green", "blue")
    verbs: tuple[str, ...] = ("touch", "push", "lift")
    seed: int = 0


class TeleopRecipe(Spec):
    """Record scripted robot demonstrations as a LeRobot v3.0 data set."""

    stage: Literal["teleop"] = "teleop"
    world: Literal["tabletop"] = "tabletop"
    num_demos: int = Field(gt=0)
    fps_hz: int = Field(5, gt=0)
    image_size_px: int = Field(64, gt=0)
    action_noise_m: float = Field(0.01, ge=0, description="executed with noise, labelled clean (DART)")
    colours: tuple[str, ...] = ("red", "green", "blue")
    verbs: tuple[str, ...] = ("touch", "push", "lift")
    seed: int = 1_000_000


class SourceSpec(Spec):
    """One folder of video (or a table, or a tar) and how to read its metadata; `auto` looks what lies in it."""

    reader: Literal[
        "auto",
        "takes",
        "aria",
        "captaincook4d",
        "cerd",
        "ego4d",
        "ego_exo4d",
        "egocentric10k",
        "egodex",
        "egoexolearn",
        "egovid",
        "epic_kitchens",
        "hd_epic",
        "hot3d",
        "lerobot",
        "nymeria",
        "openego",
        "something_something",
        "webdataset",
        "table",
        "folder",
    ] = "auto"
    path: str = Field(description="folder; empty = the input run named `video`")
    clips: Literal["recordings", "segments"] = "recordings"  # whole files, or the pieces that annotations describe
    name: str = ""
    license: str = ""


class CatalogRecipe(Spec):
    stage: Literal["catalog"] = "catalog"
    sources: tuple[SourceSpec, ...]


class LimitSpec(Spec):
    """What a score may be: `min`, `max`, or both. A clip on the limit passes, and so does one without the score."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no clip could pass")
        return self


class ScoreLimits(Spec):
    """Limits on what probing and scoring found, by column; a column that is not named loses nothing."""

    bytes: LimitSpec | None = None
    gop_frames: LimitSpec | None = None
    irregular_fraction: LimitSpec | None = None
    mean_luma: LimitSpec | None = None
    underexposed_fraction: LimitSpec | None = None
    overexposed_fraction: LimitSpec | None = None
    sharpness: LimitSpec | None = None
    camera_motion_per_s: LimitSpec | None = None
    residual_motion_per_s: LimitSpec | None = None
    idle_fraction: LimitSpec | None = None
    longest_idle_s: LimitSpec | None = None
    num_cuts: LimitSpec | None = None


class ColumnSpec(LimitSpec):
    """Limits on a column made elsewhere, joined by clip id; without `file`, on any column the catalogue has."""

    file: str = Field("", description=".parquet, .csv or .jsonl with a column clip_id; relative to where you are")
    column: str


class SelectRecipe(Spec):
    """Rules a clip must pass. Scores are stored by the catalogue; thresholds live here."""

    stage: Literal["select"] = "select"
    min_duration_s: float = Field(0.5, ge=0)
    max_duration_s: float | None = Field(None, gt=0)
    min_fps_hz: float = Field(1.0, ge=0)
    min_size_px: int = Field(32, ge=0)
    max_black_fraction: Fraction = 0.5
    max_frozen_fraction: Fraction = 0.9
    drop_exact_duplicates: bool = True
    drop_near_duplicates: bool = False
    trust_metadata: bool = False  # clips that were never probed count with the hours that their metadata declare
    scores: ScoreLimits = ScoreLimits()
    columns: tuple[ColumnSpec, ...] = ()


class DesignSpec(Spec):
    """How long each size is trained on: equal passes over the video, or equal compute (small sizes repeat)."""

    name: Literal["fixed_epochs", "fixed_steps"]
    epochs: float | None = Field(None, gt=0, description="of fixed_epochs: times the video is seen")
    num_steps: int | None = Field(None, gt=0, description="of fixed_steps: optimizer steps at every size")
    batch_size: int = Field(gt=0, description="windows in the global batch")
    window_s: float = Field(gt=0, description="seconds of video in a window")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        wanted, other = ("epochs", "num_steps") if self.name == "fixed_epochs" else ("num_steps", "epochs")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"{self.name} is given by `{wanted}`, and `{other}` follows from it")
        return self


class SubsetRecipe(Spec):
    """Draw `hours` of training video, strictly nested for one seed; held-out people and scenes first."""

    stage: Literal["subset"] = "subset"
    hours: float = Field(gt=0)
    unit: Literal["recording", "participant"] = "recording"
    stratify: tuple[str, ...] = ("source",)
    mixture: Literal["joint", "nested"] = "joint"  # of several columns: one set of strata, or strata in the first one's
    holdout_participants: Fraction = 0.1
    holdout_scenes: Fraction = 0.1
    holdout_seed: int = 0
    heldout_participants: tuple[str, ...] | None = None  # held out by name, beside those below the fraction
    heldout_scenes: tuple[str, ...] | None = None  # where one is named, no smallest one is held out for want of others
    seed: int = 0
    axis: Literal["hours", "scenes", "participants", "hours_per_scene", "hours_per_participant"] = "hours"
    num_groups: int | None = Field(None, gt=0, description="scenes (participants) to draw from: all axes but `hours`")
    min_group_hours: float = Field(0.0, ge=0, description="a scene (participant) takes part if it holds so much")
    drop_heldout_duplicates: bool = True  # near-duplicates of held-out clips are not trained on
    design: DesignSpec | None = None


class TokenizerRecipe(Spec):
    stage: Literal["tokenizer"] = "tokenizer"
    tokenizer: VideoTokenizerSpec = VideoTokenizerSpec()
    train: TrainSpec
    window_frames: int = Field(2, gt=0)
    rate_hz: float | None = Field(None, gt=0, description="frames a second of a window; unset = each frame of a clip")
    demo_fraction: Fraction = 0.25  # share of each batch that is (unlabelled) robot video
    max_quarantined_fraction: Fraction = 0.05  # share of clips that may turn out unreadable before the run stops
    num_readers: Count = 2  # threads that read ahead; 0 = read when asked
    num_steps_together: int = Field(1, gt=0, description="steps whose windows of one clip are read in one pass")
    seed: int = 0


class EncodeRecipe(Spec):
    """Latents of every selected clip and of the demonstrations, once, in memory-mapped Arrow shards."""

    stage: Literal["encode"] = "encode"
    batch_frames: int = Field(128, gt=0)
    shard_frames: int = Field(20_000, gt=0)
    dtype: Literal["float16", "bfloat16"] = "float16"
    num_readers: int = Field(2, gt=0, description="clips that are decoded at once")
    max_quarantined_fraction: Fraction = 0.05  # share of clips that may no longer decode before the run stops


class LatentActionRecipe(Spec):
    stage: Literal["latent-action"] = "latent-action"
    model: LatentActionSpec = LatentActionSpec()
    train: TrainSpec
    max_stride_frames: int = Field(12, gt=0)
    rate_hz: float | None = Field(None, gt=0, description="of the strides; unset = frames of each clip")
    hours: float = Field(0.0, ge=0, description="of the subset, for the record")
    seed: int = 0


class WorldRecipe(Spec):
    stage: Literal["world"] = "world"
    model: WorldSpec = WorldSpec()
    train: TrainSpec
    actions: Literal["latent", "hand"] = "latent"
    strides_frames: tuple[int, ...] = (4, 12)  # the agent tokens predict one latent action per stride
    rate_hz: float | None = Field(None, gt=0, description="of windows and strides; unset = frames of each clip")
    agent_frames: int = Field(4, gt=0, description="frames for the agent tokens in each sample, beside its window")
    first_frame_fraction: Fraction = 0.0  # of those, first frames of takes: there only words tell where the hand goes
    latent_noise: float = Field(0.1, ge=0, description="noise on the agent's frames: takes are few, places many")
    hours: float = Field(0.0, ge=0)
    seed: int = 0


class FinetuneRecipe(Spec):
    stage: Literal["finetune"] = "finetune"
    policy: PolicySpec = PolicySpec()
    world: WorldSpec = WorldSpec()  # used from scratch, when no pretrained world model is given
    train: TrainSpec
    world_train: TrainSpec | None = None  # the action-conditioned world model
    num_demos: int = Field(gt=0)
    read_noise: float = Field(0.1, ge=0, description="noise on what the head reads, in standard deviations")
    trunk_learning_rate_scale: float = Field(0.0, ge=0, description="0 = frozen, when pretrained")
    arm: Literal["latent", "hand", "scratch"] = "latent"
    seed: int = 0


class EvaluateRecipe(Spec):
    stage: Literal["evaluate"] = "evaluate"
    world: Literal["tabletop"] = "tabletop"
    num_episodes: int = Field(gt=0)
    max_steps: int = Field(24, gt=0)
    execute_steps: int = Field(2, gt=0, description="motor commands executed before the policy looks again")
    num_rollout_clips: Count = 3
    seed: int = 2_000_000


class GridSpec(Spec):
    """The cells of a study: every combination is one row of the table. Without `demos` only pretraining is run."""

    hours: tuple[float, ...]
    scenes: tuple[int, ...] = ()  # numbers of scenes that the hours are drawn from; none = all of them
    models: dict[str, BlockSpec] = Field(default_factory=dict, description="sizes of world models by name")
    demos: tuple[int, ...] = ()
    seeds: tuple[int, ...]
    arms: tuple[Literal["latent", "hand"], ...] = ("latent",)
    scratch_demos: tuple[int, ...] = ()  # extra cells from scratch, with many demonstrations


class SweepRecipe(Spec):
    """A study: the grid, the recipe of each stage, and the analysis that concludes it."""

    stage: Literal["sweep"] = "sweep"
    name: Annotated[str, AfterValidator(_name)] = Field(description="of folders, jobs, tables; `title` is for people")
    title: str = ""
    study: str = ""  # analysis/<study>/study.toml
    tokenizer_hours: float = Field(gt=0, description="hours of the subset that trains the shared tokenizer")
    grid: GridSpec
    film: FilmRecipe | None = None  # for catalog.sources with an empty path
    teleop: TeleopRecipe | None = None
    catalog: CatalogRecipe
    select: SelectRecipe = SelectRecipe()
    subset: SubsetRecipe
    tokenizer: TokenizerRecipe
    encode: EncodeRecipe = EncodeRecipe()
    latent_action: LatentActionRecipe
    world: WorldRecipe
    finetune: FinetuneRecipe | None = None
    evaluate: EvaluateRecipe | None = None


StageRecipe = (
    FilmRecipe
    | TeleopRecipe
    | CatalogRecipe
    | SelectRecipe
    | SubsetRecipe
    | TokenizerRecipe
    | EncodeRecipe
    | LatentActionRecipe
    | WorldRecipe
    | FinetuneRecipe
    | EvaluateRecipe
)


# --- reading ------------------------------------------------------------------------------------------------

STAGES: dict[str, type[BaseModel]] = {
    str(model.model_fields["stage"].default): model for model in get_args(StageRecipe)
}
ModelT = TypeVar("ModelT", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> StageRecipe | SweepRecipe:
    """Read a recipe: `base = "..."` under it, `overrides` ("train.num_steps=3") over it, checked key by key.

    Raises FileNotFoundError when the file or its base is missing, RecipeError for all else that is wrong.
    """
    data = load_toml(path)
    for assignment in overrides:
        data = merged(data, assigned(assignment))
    stage = data.get("stage")
    known = [*STAGES, "sweep"]
    if stage not in known:
        was = "is missing" if stage is None else f"= {stage!r} is not a stage{_nearest(str(stage), known)}"
        raise RecipeError(f"{path}: key `stage` {was}; allowed: {', '.join(known)}")
    recipe: Any = validate(SweepRecipe if stage == "sweep" else STAGES[stage], data, path)
    return recipe  # type: ignore[no-any-return]  # the table above holds the members of the union


def validate(model: type[ModelT], data: dict[str, Any], path: str | Path) -> ModelT:
    """Check `data` against `model` without changing types ("3" is not 3); RecipeError lists every fault."""
    try:
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        faults = [_fault(model, data, dict(fault)) for fault in error.errors(include_url=False)]
        raise RecipeError("\n".join(f"{path}: {fault}" for fault in dict.fromkeys(faults))) from None


def resolved_toml(recipe: BaseModel) -> str:
    """The whole recipe, defaults included, as TOML that `load_recipe` reads back to an equal recipe."""
    return to_toml(recipe.model_dump(mode="json", exclude_none=True))


def canonical_json(recipe: BaseModel) -> str:
    """The recipe as JSON with sorted keys and no spaces: equal recipes give equal bytes."""
    plain = recipe.model_dump(mode="json", exclude_none=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def recipe_hash(recipe: BaseModel) -> str:
    """SHA-256 (hex) of the canonical JSON of a recipe."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def _fault(model: type[BaseModel], data: dict[str, Any], fault: dict[str, Any]) -> str:
    """One pydantic error in words: dotted key, value, what is allowed, the nearest name."""
    location = tuple(fault["loc"])
    dotted = ".".join(map(str, location))
    if fault["type"] == "extra_forbidden":
        name = str(location[-1])
        holder = _model_at(model, location[:-1])
        names = sorted(holder.model_fields) if holder else []
        elsewhere = next(_places(model, name), None)
        hint = f"; there is `{elsewhere}`, in another table" if elsewhere else _nearest(name, names)
        return f"unknown key `{dotted}`{hint}; valid here: {', '.join(names)}"
    if fault["type"] == "missing":
        return f"key `{dotted}` is missing; add it"
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    if fault["type"] == "value_error" and isinstance(fault.get("input"), dict) and dotted:
        return f"table `{dotted}`: {message.removeprefix('value error, ')}"
    return f"key `{dotted}` = {_shown(data, location, fault.get('input'))}: {message}" if dotted else message


def _shown(data: Any, location: tuple[Any, ...], fallback: object) -> str:
    """The value as its author wrote it (checking sees it after a trip through JSON)."""
    for part in location:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return repr(fallback)
    return repr(data)


def _model_at(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model of the table at `location` (list indices are stepped over)."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = current.model_fields.get(part)
        current = next(_models_in(field.annotation), None) if field else None
    return current


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models named in a type: itself, or inside X | None, tuple[X, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _places(model: type[BaseModel], key: str, prefix: str = "") -> Iterator[str]:
    """Dotted names of every field called `key`, nearest to the top first."""
    if key in model.model_fields:
        yield prefix + key
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            yield from _places(inner, key, f"{prefix}{name}.")


def _nearest(word: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.0)
    return f", nearest valid name `{near[0]}`" if near else ""
