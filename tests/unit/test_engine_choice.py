"""Which engine runs a checkpoint, what they share, and what is said when one cannot."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import clip_backbone, engine_choice, openvino_engine, openvino_graph
from models.checkpoint import Checkpoint, ModelCard
from models.engine import Engine, EngineError, Precision, example_images, example_prompts
from models.engine_choice import EngineBuilder, EngineOptions, default_cache_folder
from models.layers import MergeBlock
from models.merging import CoarseMerge, SplitMerge
from models.openvino_engine import OpenVinoCompiler
from models.openvino_graph import Graph, GraphFolder, GraphOptions
from models.torch_engine import StandInEngine, TorchEngine, find_computing_layers
from tests.fakes import ColourModel, TextModel, fake_checkpoint
from training.config import load_config
from training.train import build_model

CPU = torch.device("cpu")


def smoke(recipe: str) -> Checkpoint:
    config = load_config(recipe, smoke=True)
    torch.manual_seed(0)
    card = ModelCard(architecture=config.architecture, config={})
    return Checkpoint(recipe, build_model(config).eval(), card, digest=recipe.encode().hex().ljust(64, "0"))


def test_openvino_is_the_choice_on_a_cpu(unet: Checkpoint, tmp_path: Path) -> None:
    engine = EngineBuilder(CPU, EngineOptions(precision="fp32", cache_folder=tmp_path)).build(unet)
    assert engine.name == "openvino fp32"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stand_in_is_for_networks_that_were_not_converted_yet(unet: Checkpoint, tmp_path: Path) -> None:
    engines = EngineBuilder(CPU, EngineOptions(precision="bf16", cache_folder=tmp_path))
    stand_in = engines.stand_in(unet)
    assert stand_in is not None
    assert (stand_in.name, stand_in.is_stand_in) == ("torch fp32, for now", True)
    assert not engines.build(unet).is_stand_in
    assert engines.stand_in(unet) is None


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_who_names_an_engine_gets_no_other_meanwhile(unet: Checkpoint, tmp_path: Path, engine: str) -> None:
    options = EngineOptions(engine, "fp32", cache_folder=tmp_path)  # type: ignore[arg-type]
    assert EngineBuilder(CPU, options).stand_in(unet) is None


def test_a_stand_in_leaves_a_shared_tower_as_precise_as_it_was(tmp_path: Path) -> None:
    checkpoint, again = smoke("prompt"), smoke("prompt")
    images, prompt = example_images(again.model, 2), example_prompts(again.model, 2)
    with torch.inference_mode():
        wanted = again.model(images, prompt)
    engines = EngineBuilder(CPU, EngineOptions(precision="bf16", cache_folder=tmp_path))
    stand_in = engines.stand_in(checkpoint)
    assert stand_in is not None
    assert again.model.backbone is checkpoint.model.backbone
    assert torch.allclose(stand_in.decode(stand_in.encode(images), prompt), wanted, atol=1e-4)
    options = GraphOptions(Precision.FP32, 1, 1)
    engine = OpenVinoCompiler(options, GraphFolder(tmp_path)).compile(again)
    assert torch.allclose(engine.decode(engine.encode(images), prompt), wanted, atol=1e-4)
    assert engine.encoder_digest != stand_in.encoder_digest


def test_torch_where_openvino_is_not_installed(unet: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graph, "is_installed", lambda: False)
    assert EngineBuilder(CPU, EngineOptions(precision="fp32")).build(unet).name == "torch fp32"
    with pytest.raises(EngineError, match=r"got openvino, which is not installed; pip install 'petseg\[openvino\]'"):
        EngineBuilder(CPU, EngineOptions("openvino")).build(unet)


def test_openvino_on_a_gpu_is_refused(unet: Checkpoint) -> None:
    with pytest.raises(EngineError, match="got openvino on cuda, wanted it on a cpu"):
        EngineBuilder(torch.device("cuda"), EngineOptions("openvino")).build(unet)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_precision_is_what_the_device_computes_in(
    unet: Checkpoint, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    wanted = "bf16" if has_bf16 else "fp32"
    monkeypatch.setattr(openvino_graph, "has_native_bf16", lambda: has_bf16)
    monkeypatch.setattr(engine_choice, "_torch_has_bf16", lambda device: has_bf16)
    asked: list[Precision] = []
    built = openvino_graph._Compiled.__init__

    def compile_as_asked(self: openvino_graph._Compiled, model: object, precision: Precision, *numbers: int) -> None:
        asked.append(precision)
        built(self, model, precision, *numbers)
        self.precision = precision  # as on a CPU that has it, whichever this one is

    monkeypatch.setattr(openvino_graph._Compiled, "__init__", compile_as_asked)
    assert EngineBuilder(CPU, EngineOptions("openvino")).build(unet).name == f"openvino {wanted}"
    assert asked[-1] == wanted
    assert EngineBuilder(CPU, EngineOptions("torch", "fp32")).build(unet).name == "torch fp32"
    assert EngineBuilder(CPU, EngineOptions("torch")).build(unet).name == f"torch {wanted}"


@pytest.mark.parametrize("hint", ["bf16", "f32"])
def test_the_name_says_what_the_compiled_graph_computes_in(
    unet: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hint: str
) -> None:
    compiled = SimpleNamespace(get_property=lambda _: getattr(openvino_graph.load_openvino().Type, hint))
    compiles = SimpleNamespace(compile_model=lambda *_: compiled)
    compiler = OpenVinoCompiler(GraphOptions(Precision.BF16, 1, 1), GraphFolder(None))
    monkeypatch.setattr("models.openvino_engine.convert", lambda *_: None)
    monkeypatch.setattr(openvino_graph, "core", lambda: compiles)
    monkeypatch.setattr(openvino_graph, "has_native_bf16", lambda: True)
    names = {compiler.compile(unet).name for _ in range(2)}
    assert names == {"openvino bf16" if hint == "bf16" else "openvino fp32"}
    warning = "got precision bf16 on a CPU without instructions for it, computing in fp32; set it to auto"
    assert [record.getMessage() for record in caplog.records] == ([] if hint == "bf16" else [warning])


def test_bf16_is_not_imitated(unet: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graph, "has_native_bf16", lambda: False)
    compiler = OpenVinoCompiler(GraphOptions(Precision.BF16, 1, 1), GraphFolder(None))
    assert compiler.compile(unet).name == "openvino fp32"


@pytest.mark.parametrize(("row_s", "wanted"), [(0.002, 4), (0.015, 4), (0.025, 2), (0.05, 1), (0.8, 1)])
def test_rows_that_run_one_by_one_are_as_many_as_others_can_wait_for(
    unet: Checkpoint, monkeypatch: pytest.MonkeyPatch, row_s: float, wanted: int
) -> None:
    timed: list[object] = []

    def time_it(run: object) -> float:
        timed.append(run)
        return row_s

    monkeypatch.setattr("models.openvino_engine._seconds", time_it)
    engine = EngineBuilder(CPU, EngineOptions("openvino", "fp32")).build(unet)
    assert (engine.is_row_by_row, engine.best_batch_size, engine.passes_per_stream) == (True, wanted, 2)
    assert timed
    timed.clear()
    assert engine.best_batch_size == wanted
    assert not timed


def test_a_row_is_timed_as_a_busy_server_runs_it(unet: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineBuilder(CPU, EngineOptions("openvino", "fp32")).build(unet)
    asked: list[int] = []
    prepare = engine.example_run

    def note(batch_size: int) -> Callable[[], object]:
        asked.append(batch_size)
        return prepare(batch_size)

    def time_it(run: Callable[[], object]) -> float:
        run()
        return 0.015

    monkeypatch.setattr(engine, "example_run", note)
    monkeypatch.setattr("models.openvino_engine._seconds", time_it)  # a test may not depend on the machine's pace
    assert engine.best_batch_size == 4
    assert asked == [1]


@pytest.mark.parametrize(("precision", "is_row_by_row"), [(Precision.FP32, True), (Precision.BF16, False)])
def test_a_transformer_in_bf16_keeps_its_batches_whole(
    unet: Checkpoint, monkeypatch: pytest.MonkeyPatch, precision: Precision, is_row_by_row: bool
) -> None:
    monkeypatch.setattr(openvino_graph, "has_native_bf16", lambda: False)  # what was asked for decides
    compiler = OpenVinoCompiler(GraphOptions(precision, 1, 1, row_by_row=True), GraphFolder(None))
    engine = compiler.compile(smoke("prompt"))
    assert (engine.is_row_by_row, engine.best_batch_size > 0) == (is_row_by_row, is_row_by_row)
    assert compiler.compile(unet).is_row_by_row


@pytest.mark.parametrize(
    ("precision", "has_matrix_units", "way"),
    [
        (Precision.FP32, True, CoarseMerge),
        (Precision.FP32, False, CoarseMerge),
        (Precision.BF16, True, SplitMerge),
        (Precision.BF16, False, CoarseMerge),
    ],
)
def test_maps_are_merged_in_the_way_that_suits_the_cpu(
    unet: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    precision: Precision,
    has_matrix_units: bool,
    way: type[nn.Module],
) -> None:
    monkeypatch.setattr(openvino_engine, "has_matrix_units", lambda: has_matrix_units)
    monkeypatch.setattr("models.merging._TILE_CHANNELS", 1)  # the networks of tests have few
    options, folder = GraphOptions(precision, 1, 1, row_by_row=True), GraphFolder(tmp_path)
    OpenVinoCompiler(options, folder).compile(unet)
    assert ways_of_merging(unet) == {way}
    assert OpenVinoCompiler(options, folder).holds(unet)
    monkeypatch.setattr(openvino_engine, "has_matrix_units", lambda: not has_matrix_units)
    # A folder may be shared by machines: one takes no graph that was made for another kind of CPU.
    assert OpenVinoCompiler(options, folder).holds(unet) == (precision is Precision.FP32)


@pytest.mark.parametrize("has_matrix_units", [True, False])
@pytest.mark.parametrize(("precision", "is_row_by_row"), [(Precision.FP32, True), (Precision.BF16, False)])
def test_graphs_of_whole_batches_merge_maps_as_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision, is_row_by_row: bool, has_matrix_units: bool
) -> None:
    monkeypatch.setattr(openvino_engine, "has_matrix_units", lambda: has_matrix_units)
    monkeypatch.setattr("models.merging._TILE_CHANNELS", 1)
    checkpoint, folder = smoke("prompt-compact"), GraphFolder(tmp_path)
    compiler = OpenVinoCompiler(GraphOptions(precision, 1, 1, row_by_row=True), folder)
    assert compiler.compile(checkpoint).is_row_by_row == is_row_by_row
    # Not all maps of this network are doubled: some blocks stay as they are.
    assert ways_of_merging(checkpoint) - {MergeBlock} == ({CoarseMerge} if is_row_by_row else set())
    assert compiler.holds(checkpoint)


def ways_of_merging(checkpoint: Checkpoint) -> set[type[nn.Module]]:
    ways = (MergeBlock, SplitMerge, CoarseMerge)
    return {type(module) for module in checkpoint.model.modules() if isinstance(module, ways)}


def test_a_tower_is_kept_once_for_all_precisions(tmp_path: Path) -> None:
    graphs = []
    for precision in Precision:
        options = GraphOptions(precision, 1, 1, row_by_row=True)
        OpenVinoCompiler(options, GraphFolder(tmp_path)).compile(smoke("clip-compact"))
        graphs.append(len(list(tmp_path.iterdir())))
    assert graphs == [2, 3]  # the decoder alone is another


def test_what_does_not_convert_runs_on_torch_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("colour: got a network that OpenVINO does not convert; use torch")

    monkeypatch.setattr("models.openvino_engine.convert", refuse)
    engine = EngineBuilder(CPU, EngineOptions()).build(fake_checkpoint(ColourModel, "colour"))
    assert isinstance(engine, TorchEngine)
    assert "colour: got a network that OpenVINO does not convert" in caplog.text
    with pytest.raises(EngineError, match="colour: got"):
        EngineBuilder(CPU, EngineOptions("openvino")).build(fake_checkpoint(ColourModel, "colour"))


def test_models_on_one_tower_share_its_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clip, prompt = smoke("clip"), smoke("prompt")
    assert clip.model.encoder_digest() == prompt.model.encoder_digest() is not None
    made: list[Graph] = []
    built = Graph.__init__

    def count(self: Graph, *arguments: object) -> None:
        made.append(self)
        built(self, *arguments)  # type: ignore[arg-type]

    compiler = OpenVinoCompiler(GraphOptions(Precision.FP32, 1, 1), GraphFolder(tmp_path))
    monkeypatch.setattr(Graph, "__init__", count)
    monkeypatch.setattr("models.openvino_graph._prove", lambda *_: None)
    first, second = compiler.compile(clip), compiler.compile(prompt)
    assert first._encoder is second._encoder
    assert len(made) == 3
    assert first.shared_encoder == second.shared_encoder == clip.model.encoder_digest()
    assert first.encoder_digest == second.encoder_digest


def test_features_are_shared_within_one_engine_and_precision_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = OpenVinoCompiler(GraphOptions(Precision.FP32, 1, 1), GraphFolder(tmp_path))
    makers: list[Callable[[Checkpoint], Engine]] = [
        compiler.compile,
        lambda checkpoint: TorchEngine(checkpoint.model, CPU, Precision.FP32),
        lambda checkpoint: TorchEngine(checkpoint.model, CPU, Precision.BF16),
        lambda checkpoint: StandInEngine(checkpoint.model),
    ]
    digests = []
    for make in makers:
        monkeypatch.setattr(clip_backbone, "_instances", {})  # each casts a tower of its own
        clip, prompt = make(smoke("clip")), make(smoke("prompt"))
        assert clip.encoder_digest == prompt.encoder_digest is not None
        assert clip.shared_encoder == clip.model.encoder_digest()
        digests.append(clip.encoder_digest)
    assert len(set(digests)) == len(makers)


def test_an_image_only_network_shares_nothing(unet: Checkpoint) -> None:
    assert TorchEngine(unet.model, CPU, Precision.FP32).encoder_digest is None


def test_layers_that_embed_prompts_stay_float32() -> None:
    checkpoint = smoke("clip")
    engine = TorchEngine(checkpoint.model, CPU, Precision.FP32)
    computing = {name for name, module in checkpoint.model.named_modules() if module in find_computing_layers(engine)}
    assert any(name.startswith("head.") for name in computing)
    assert any(name.startswith("backbone.clip.visual") for name in computing)
    assert not any(name.startswith("backbone.clip.t") for name in computing)


def test_compiled_networks_say_so(unet: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def note(function: object, **_: object) -> object:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", note)
    engine = EngineBuilder(CPU, EngineOptions("torch", "fp32", compiles=True)).build(unet)
    engine.warm_up(2)
    assert engine.name == "torch fp32, compiled"
    assert len(compiled) == 2


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_every_kind_of_model_can_be_warmed(engine: str) -> None:
    for kind in (ColourModel, TextModel):
        options = EngineOptions(engine, "fp32")  # type: ignore[arg-type]
        built = EngineBuilder(CPU, options).build(fake_checkpoint(kind, "any"))
        built.warm_up(3)


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_folder() == Path("/somewhere/petseg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("/users/me"))
    assert default_cache_folder() == Path("/users/me/.cache/petseg")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache_folder() is None
