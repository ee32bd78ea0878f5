"""A network of one's own: by import, in memory, TorchScript, ONNX."""

from __future__ import annotations

import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.foreign import foreign_kind, foreign_name, open_foreign
from robustcli.adapters.foreign_files import OnnxNetwork
from robustcli.adapters.load import load, resolve
from robustcli.cli import main
from robustcli.core import machine
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.data.labels import read_label_space
from robustcli.evaluation.store import Store
from robustcli.transforms.base import CLEAN

SMALL = {"resize": 32, "crop": 32}
CODE = """
import torch
from torch import nn


def build(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(16 * width, 10),
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


instance = Net()
number = 3


def divides():
    return 1 / 0


def quits():
    raise SystemExit


class Fails(Net):
    def forward(self, x):
        return x.no_such_attribute
"""


class Small(nn.Module):
    """Ten classes, with a normalisation whose statistics training would change."""

    def __init__(self, outputs: int = 10, head: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.fc, self.head = nn.Linear(8, outputs), head or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc(self.norm(self.conv(x)).relu().mean((2, 3))))


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_package").mkdir()
    (tmp_path / "users_package" / "__init__.py").touch()
    (tmp_path / "users_package" / "nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("users_package")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def evaluate(model: object, out: Path, **options: object) -> robustcli.Run:
    settings = {"limit": 24, "device": "cpu", "workers": 0, "preprocessing": SMALL, **options}
    data = settings.pop("data", "cifar10-mini")
    return robustcli.evaluate(model, data, "grayscale", out=out, **settings)  # type: ignore[arg-type]


def rows(run: robustcli.Run, model: str):
    return Store(run.path).rows(model, CLEAN, "cls").sort_values("image_id", ignore_index=True)


def script(network: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.rand(2, 3, 32, 32)), str(path))
    return str(path)


def export(network: nn.Module, path: Path, *, batch: int, free: bool) -> str:
    pytest.importorskip("onnx", reason="needs the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    axes = {"x": {0: "n", 2: "h", 3: "w"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(batch, 3, 32, 32),), str(path), dynamo=False, input_names=["x"],
            dynamic_axes=axes,
        )  # fmt: skip
    return str(path)


def assert_same_answers(run: robustcli.Run, first: str, second: str, tolerance: float) -> None:
    single, other = rows(run, first), rows(run, second)
    assert single["prediction"].tolist() == other["prediction"].tolist()
    for column in ("probability", "target_probability"):
        np.testing.assert_allclose(single[column], other[column], atol=tolerance)


# Names.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vmamba-pico", None),
        ("resnet18.a1_in1k", None),
        ("smp:Unet/resnet34", None),
        ("hf-hub:timm/resnet18", None),
        ("timm:resnet18", None),
        ("hf-hub:someone/resnet18", "timm-hub"),
        ("hf:org/name", "hf"),
        ("open-clip:ViT-B-32/openai", "open-clip"),
        ("package.module:build", "import"),
        ("folder/file.py:Net", "import"),
        ("nets/a.ts", "torchscript"),
        ("a.pt", "torchscript"),
        ("a.onnx", "onnx"),
    ],
)
def test_where_a_network_comes_from_is_told_by_its_name(name: str, kind: str | None) -> None:
    assert foreign_kind(ModelRequest(name)) == kind


def test_a_file_is_called_by_its_last_part_and_not_trained() -> None:
    assert foreign_name(ModelRequest("a/b/net.ts")) == "net.ts"
    assert foreign_name(ModelRequest("a/b/net.py:build")) == "net.py:build"
    with pytest.raises(UsageError, match="can be evaluated, but not trained"):
        resolve("package.module:build")


# The same network through every door.


def test_memory_and_torchscript_and_onnx_answer_alike(tmp_path: Path, network: Small) -> None:
    models = {
        "memory": network,
        "script": script(network, tmp_path / "net.ts"),
        "fixed": export(network, tmp_path / "fixed.onnx", batch=5, free=False),
        "free": export(network, tmp_path / "free.onnx", batch=1, free=True),
    }
    run = evaluate(models, tmp_path / "run", batch_size=7)
    assert_same_answers(run, "memory", "script", 0)
    # onnxruntime sums in another order: float32 rounding of a few hundred terms
    assert_same_answers(run, "memory", "fixed", 1e-5)
    assert_same_answers(run, "memory", "free", 1e-5)
    expected = sum(p.numel() for p in network.parameters())
    by_name = {m.name: m for m in run.record.models}
    assert by_name["memory"].parameters == by_name["script"].parameters == expected
    # the exporter folds the normalisation into the convolution
    assert 0 < by_name["fixed"].parameters <= expected


class _Runtime:
    """Stands in for onnxruntime on a machine with two GPUs."""

    SessionOptions = staticmethod(SimpleNamespace)

    def __init__(self, *, starts: bool) -> None:
        self.starts, self.asked, self.InferenceSession = starts, [], self._started

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def _started(self, _path: str, _options: object, providers: list[Any]) -> object:
        self.asked.append(providers)
        active = [p if isinstance(p, str) else p[0] for p in providers]
        node = SimpleNamespace(name="x", type="tensor(float)", shape=["n", 3, 32, 32])
        return SimpleNamespace(
            get_inputs=lambda: [node], get_outputs=lambda: [node],
            get_providers=lambda: active if self.starts else ["CPUExecutionProvider"],
        )  # fmt: skip


def test_an_onnx_file_runs_on_the_gpu_of_its_process(tmp_path: Path) -> None:
    runtime = _Runtime(starts=True)
    network = OnnxNetwork(tmp_path / "net.onnx", runtime)
    for name in ("cuda:1", "cuda:0", "cuda:1"):
        network._session(torch.device(name))
    options = [{"device_id": number, "use_tf32": 0} for number in (1, 0)]
    gpus = [[("CUDAExecutionProvider", o), "CPUExecutionProvider"] for o in options]
    assert runtime.asked == [["CPUExecutionProvider"], *gpus]


def test_an_onnx_file_that_cannot_use_the_gpu_says_so(tmp_path: Path) -> None:
    network = OnnxNetwork(tmp_path / "net.onnx", _Runtime(starts=False))
    with pytest.warns(
        RuntimeWarning, match=r"cannot use the GPU, so `.*net\.onnx` runs on the CPU"
    ):
        network._session(torch.device("cuda:0"))


def test_vmamba_pico_is_the_same_by_name_in_memory_and_as_torchscript(tmp_path: Path) -> None:
    weights = Path(robustcli.__file__).parent / "assets" / "vmamba-pico.safetensors"
    pico = robustcli.create_model("vmamba-pico", weights=weights)
    custom = load(ModelRequest("vmamba-pico"), "cls").preprocessing
    preprocessing = {
        key: getattr(custom, key) for key in ("resize", "crop", "interpolation", "mean", "std")
    }
    run = evaluate({"mine": pico}, tmp_path / "run", preprocessing=preprocessing)
    evaluate("vmamba-pico", tmp_path / "run", preprocessing=None)
    assert_same_answers(run, "mine", "vmamba-pico", 0)
    hashes = {model.weights_sha256 for model in run.record.models}
    assert len(hashes) == 1


def test_a_function_and_a_class_and_a_network_by_import(package: Path) -> None:
    for name, parameters in (("build", 3 * 8 * 9 + 8 + 1290), ("Net", 280), ("instance", 280)):
        model = load(ModelRequest(f"users_package.nets:{name}", preprocessing=SMALL), "cls")
        assert model.facts.parameters == parameters
    wide = load(ModelRequest("users_package.nets:build", None, {"width": 4}, SMALL), "cls")
    assert wide.facts.arguments == {"width": 4}
    by_file = load(ModelRequest("users_package/nets.py:build", None, {"width": 4}, SMALL), "cls")
    assert by_file.facts.weights_sha256 == wide.facts.weights_sha256  # built with one seed


def test_a_network_by_import_with_weights(
    package: Path, network: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package)
    trained = import_module("users_package.nets").build()
    nn.init.constant_(trained[-1].bias, 7.0)
    torch.save(trained.state_dict(), "w.pt")
    name = "users_package.nets:build"
    model = load(ModelRequest(name, Path("w.pt"), preprocessing=SMALL), "cls")
    assert model.facts.weights == "w.pt"
    assert torch.equal(model.network.state_dict()["network.4.bias"], trained[-1].bias)
    torch.save(network.state_dict(), "other.pt")
    with pytest.raises(UsageError, match="does not contain the weights of"):
        load(ModelRequest(name, Path("other.pt"), preprocessing=SMALL), "cls")


@pytest.mark.slow
def test_several_processes_build_it_by_import(package: Path) -> None:
    name = "users_package.nets:build"
    alone = evaluate(name, package / "one")
    shared = evaluate(name, package / "two", devices=2)
    expected = rows(alone, name)["probability"]
    np.testing.assert_allclose(expected, rows(shared, name)["probability"], atol=1e-6)


# In memory.


def test_a_network_in_memory_comes_back_as_it_was(tmp_path: Path, network: Small) -> None:
    network.double().train()
    network.norm.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pointer = network.fc.weight.data_ptr()
    evaluate(network, tmp_path / "run")
    assert network.training
    assert not network.norm.training
    assert network.fc.weight.data_ptr() == pointer
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert after["norm.running_mean"].dtype == torch.float64
    with pytest.raises(UsageError):
        evaluate(network, tmp_path / "run", classes=["a"])
    assert network.training


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_do_not_need_the_network(
    tmp_path: Path, network: Small, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.head = _Unpicklable()
    monkeypatch.setattr(machine, "start_method", lambda: method)
    run = evaluate(network, tmp_path / "run", workers=2)
    assert run.table()["n"].tolist() == [24, 24]


class _Unpicklable(nn.Identity):
    def __reduce__(self) -> str:
        raise TypeError("not to be pickled")


def test_the_same_again_computes_nothing_and_other_weights_are_refused(
    tmp_path: Path, network: Small
) -> None:
    run = evaluate(network, tmp_path / "run")
    first = run.record
    again = evaluate(network, tmp_path / "run")
    assert len(list((again.path / "sessions").iterdir())) == 1
    assert again.record.models == first.models
    nn.init.zeros_(network.fc.weight)
    with pytest.raises(UsageError, match="`Small`: the hash of the weights"):
        evaluate(network, tmp_path / "run")


def test_weights_and_other_processes_do_not_go_with_it(tmp_path: Path, network: Small) -> None:
    message = r"network in memory(.|\n)*other processes cannot access it"
    with pytest.raises(UsageError, match=message):
        evaluate(network, tmp_path / "run", devices=2)
    with pytest.raises(UsageError, match="`weights` cannot be used with a network in memory"):
        evaluate(network, tmp_path / "run", weights=tmp_path / "w.pt")


# Classes, and what the answers are.


def test_classes_in_another_order_score_alike(tmp_path: Path, network: Small) -> None:
    ids = read_label_space("cifar10").ids
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    torch.manual_seed(0)
    shuffled = Small().eval()
    shuffled.load_state_dict(network.state_dict())
    with torch.no_grad():
        shuffled.fc.weight.copy_(network.fc.weight[order])
        shuffled.fc.bias.copy_(network.fc.bias[order])
    plain = evaluate(network, tmp_path / "plain")
    run = evaluate(shuffled, tmp_path / "own", classes=[ids[i] for i in order])
    assert run.record.dataset.label_space != "cifar10"
    first, other = rows(plain, "Small"), rows(run, "Small")
    correct = (first["prediction"] == first["target"]).tolist()
    assert correct == (other["prediction"] == other["target"]).tolist()
    assert [order[p] for p in other["prediction"]] == first["prediction"].tolist()


def test_an_unknown_number_of_outputs_wants_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 7 outputs, and their classes are not known"):
        evaluate(Small(7), tmp_path / "run")
    with pytest.raises(UsageError, match="has 10 outputs; `imagenet-1k` has 1000 classes"):
        evaluate(Small(), tmp_path / "run", label_space="imagenet-1k")
    with pytest.raises(UsageError, match="Two classes of `Small` are called `a`"):
        evaluate(Small(2), tmp_path / "run", classes=["a", "a"])


def test_probabilities_are_recognised(tmp_path: Path, network: Small) -> None:
    soft = Small(head=nn.Softmax(1)).eval()
    soft.load_state_dict(network.state_dict())
    run = evaluate({"logits": network, "soft": soft}, tmp_path / "run")
    assert_same_answers(run, "logits", "soft", 1e-6)  # a logarithm and its exponential in float32


class Answer(nn.Module):
    """Answers in another form than a tensor of scores."""

    def __init__(self, form: object) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv2d(3, 10, 3)

    def forward(self, x: torch.Tensor) -> object:
        return self.form(self.conv(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    "form",
    [
        lambda maps: {"logits": maps.mean((2, 3))},
        lambda maps: (maps.mean((2, 3)), maps),
        lambda maps: maps.mean((2, 3), keepdim=True),
    ],
)
def test_scores_are_found_in_what_is_returned(form: object) -> None:
    opened = open_foreign(ModelRequest("x", preprocessing=SMALL, module=Answer(form)), offline=True)
    assert (opened.task, opened.space.ids) == ("cls", read_label_space("cifar10").ids)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda maps: maps.mean(), r"neither a classifier nor a segmenter(.|\n)*`squeeze` removes"),
        (lambda maps: maps.mean((2, 3)).squeeze(), r"shape \(10,\);(.|\n)*`squeeze` removes it\.$"),
        (lambda maps: "cat", r"does not return a tensor of scores(.|\n)*It returned `str`\."),
        (
            lambda maps: maps.mean((2, 3)).argmax(1),
            r"returned a tensor of torch.int64.\nWrap.*es\.$",
        ),
        (lambda maps: maps.mean((1, 2, 3)), r"(?s)one number per image.*torch\.cat"),
        (lambda maps: maps.mean((1, 2, 3))[:, None], r"(?s)one number per image.*torch\.cat"),
        (lambda maps: maps.no_attribute, r"AttributeError(.|\n)*test_foreign\.py:\d+"),
    ],
)
def test_answers_that_are_no_scores(form: object, words: str) -> None:
    request = ModelRequest("x", preprocessing=SMALL, module=Answer(form))
    with pytest.raises(UsageError, match=words):
        open_foreign(request, offline=True)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NaN"):
        evaluate(Answer(lambda maps: maps.mean((2, 3)) * float("nan")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_for_a_real_image_ends_the_run_and_names_the_images(tmp_path: Path) -> None:
    class Overflowing(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.6, torch.inf, super().forward(x))

    words = r"NaN .* for an image\.\nIt was `x` under `identity`, `airplane/\S+` to `\S+`\. The net"
    with pytest.raises(RunError, match=words):
        evaluate({"x": Overflowing()}, tmp_path / "run")


def test_a_network_that_takes_one_image_at_a_time(tmp_path: Path) -> None:
    class One(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.view(1, 3, 32, 32))

    torch.manual_seed(0)
    first, many = One(), Small()
    many.load_state_dict(first.state_dict())
    run = evaluate({"one": first, "many": many}, tmp_path / "run", batch_size=7)
    assert_same_answers(run, "one", "many", 1e-6)  # convolutions of other batch sizes round anew


def test_a_failure_later_names_the_users_line(tmp_path: Path) -> None:
    class Late(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 4:
                raise ValueError("too many for me")
            return super().forward(x)

    with pytest.raises(RunError, match=r"(?s)fails on an input.*too many for me, at .*foreign\.py"):
        evaluate(Late(), tmp_path / "run", batch_size=8)


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (lambda scores: scores[:, :7], "It had 10 for a synthetic image, and has 7 now"),
        (lambda scores: sys.exit(), "SystemExit"),
    ],
)
def test_what_goes_wrong_later_names_the_images_and_leaves_no_rows(
    later: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    class Late(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = super().forward(x)
            return later(scores) if len(x) == 8 else scores

    with pytest.raises(RunError, match=rf"under `identity`, `.*\.jpg` to `.*\.jpg`. .*{words}"):
        evaluate(Late(), tmp_path / "run", batch_size=8)
    assert not list((tmp_path / "run").rglob("*.parquet"))


class OnnxRuntimeError(Exception):
    """An exception as onnxruntime raises it, which is no RuntimeError."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        RuntimeError("GET was unable to find an engine", "Unable to find a valid cuDNN algorithm"),
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        OnnxRuntimeError("Failed to allocate memory for requested buffer of size 12582912"),
    ],
)
def test_batches_for_which_memory_is_short_are_halved(error: Exception, tmp_path: Path) -> None:
    class Large(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 4:
                raise error
            return super().forward(x)

    run = evaluate(Large(), tmp_path / "run", batch_size=8)
    assert run.record.status == "complete"


def test_grey_and_fixed_sizes_are_found() -> None:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(28 * 28, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.view(-1, 28 * 28)) if x.shape[1:] == (1, 28, 28) else self.fc(x)

    model = open_foreign(ModelRequest("x", module=Grey()), offline=True).model
    assert (model.preprocessing.channels, model.preprocessing.crop) == (1, 28)
    assert any("crop 28" in note for note in model.notes)


def test_the_default_preprocessing_is_announced(network: Small) -> None:
    model = open_foreign(ModelRequest("x", module=network), offline=True).model
    preprocessing = model.preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (256, 224)
    assert preprocessing.interpolation == "bilinear"
    assert any("by default: resize 256, crop 224" in note for note in model.notes)
    settings = {**SMALL, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = open_foreign(
        ModelRequest("x", preprocessing=settings, module=network), offline=True
    ).model
    assert not any("by default" in note for note in model.notes)


# What a user can do wrong.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("users_package.nets:divides", r"ZeroDivisionError(.|\n)*nets\.py:27 \(`return 1 / 0`\)"),
        ("users_package.nets:Fails", r"no_such_attribute(.|\n)*nets\.py:36"),
        ("users_package.nets:quits", r"SystemExit(.|\n)*nets\.py:31"),
        ("users_package.nets:number", "is a int, not a network"),
        ("users_package.nets:absent", "has no `absent`(.|\n)*`build`"),
        ("users_package.absent:build", "module `users_package.absent`"),
        ("absent.py:build", r"^The file `absent.py` does not exist((?!line)(.|\n))*$"),
        ("broken.py:build", r"SyntaxError(.|\n)*broken\.py:2"),
        ("needs.py:build", r"No module named 'a_package_that_is_not_there'(.|\n)*needs\.py:1"),
        ("absent.onnx", "file `absent.onnx` does not exist"),
        ("weights.pt", "not a TorchScript archive(.|\n)*--weights"),
    ],
)
def test_errors_of_the_users_code(package: Path, name: str, words: str) -> None:
    Path("broken.py").write_text("x = 1\nx = = 2\n")
    Path("needs.py").write_text("import a_package_that_is_not_there\n")
    torch.save({"w": torch.zeros(2)}, "weights.pt")
    with pytest.raises(UsageError, match=words):
        load(ModelRequest(name, preprocessing=SMALL))


def test_arguments_that_do_not_fit(package: Path) -> None:
    with pytest.raises(UsageError, match="does not support `--model-arg`"):
        load(ModelRequest("users_package.nets:instance", None, {"width": 4}, SMALL))
    with pytest.raises(UsageError, match=r"called with \(depth=4\)(.|\n)*unexpected keyword"):
        load(ModelRequest("users_package.nets:build", None, {"depth": 4}, SMALL))


@pytest.mark.parametrize("record", ["constants.pkl", "data.pkl"])
def test_torchscript_with_deeply_nested_values_is_refused(
    tmp_path: Path, network: Small, record: str
) -> None:
    """A million levels end the process with a segmentation fault in `torch.jit.load`."""
    whole, nested = Path(script(network, tmp_path / "net.ts")), tmp_path / "nested.ts"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(nested, "w") as target:
        for name in source.namelist():
            is_nested = name.endswith(f"/{record}")
            content = b"\x80\2)" + b"\x85" * 10_000 + b"." if is_nested else source.read(name)
            target.writestr(name, content)
    with pytest.raises(UsageError, match=r"refused, because it could crash(.|\n)*an ONNX file"):
        load(ModelRequest(str(nested), preprocessing=SMALL))


def test_damaged_files_are_refused(tmp_path: Path, network: Small) -> None:
    path = Path(script(network, tmp_path / "net.ts"))
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"net\.ts`"):
        load(ModelRequest(str(path)))
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12no graph at all")
    with pytest.raises(UsageError, match="cannot be read as a network"):
        load(ModelRequest(str(tmp_path / "net.onnx")))


class MeansOfChannels:
    """An onnxruntime with one file, which returns the mean of each channel."""

    class SessionOptions:
        pass

    def get_available_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def InferenceSession(self, *_: object, **__: object) -> MeansOfChannels:  # noqa: N802
        return self

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["n", 3, 8, 8])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="y")]

    def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feed["x"].mean((2, 3))]


def test_a_graph_without_gradients_accepts_images_that_require_them() -> None:
    """As `robust explain` does, to find out which methods fit."""
    network = OnnxNetwork(Path("net.onnx"), MeansOfChannels())
    images = torch.rand(2, 3, 8, 8).requires_grad_(True)
    answers = network(images)
    assert not answers.requires_grad
    torch.testing.assert_close(answers, images.detach().mean((2, 3)))


@pytest.mark.parametrize(
    ("package_name", "model", "extra"),
    [
        ("onnxruntime", "net.onnx", "onnx"),
        ("transformers", "hf:org/name", "hf"),
        ("open_clip", "open-clip:ViT-B-32/openai", "clip"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package_name: str, model: str, extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").touch()
    monkeypatch.setitem(sys.modules, package_name, None)
    with pytest.raises(MachineError, match=rf"pip install 'robustcli\[{extra}\]'"):
        load(ModelRequest(model), offline=True)


def test_a_changed_file_is_refused(tmp_path: Path, network: Small) -> None:
    path = script(network, tmp_path / "net.ts")
    evaluate(path, tmp_path / "run")
    nn.init.zeros_(network.fc.weight)
    script(network, tmp_path / "net.ts")
    with pytest.raises(UsageError, match=r"`net.ts`: the hash of the weights"):
        evaluate(path, tmp_path / "run")


# Segmenters.


class Masks(nn.Module):
    """Foreground where an image is bright, in the form that `form` makes of its logits."""

    def __init__(self, form: object) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.conv.weight, 4.0)
        nn.init.constant_(self.conv.bias, -3.0)

    def forward(self, x: torch.Tensor) -> object:
        return self.form(self.conv(x))  # type: ignore[operator]


def test_segmenters_are_told_by_their_answer_in_every_form(tmp_path: Path) -> None:
    forms = {
        "logits": lambda s: s,
        "probabilities": torch.sigmoid,
        "two": lambda s: torch.cat([-s / 2, s / 2], 1),
        "softmax": lambda s: {"out": torch.cat([-s / 2, s / 2], 1).softmax(1)},
        "flat": lambda s: s[:, 0],
    }
    models = {name: Masks(form) for name, form in forms.items()}
    settings = {"limit": 2, "device": "cpu", "workers": 0}
    run = robustcli.evaluate(models, "nuclei-mini", "identity", out=tmp_path / "run", **settings)
    assert run.table()["dice"].nunique() == 1
    assert 0 < run.table()["dice"].iloc[0] < 1
    counts = [Store(run.path).rows(name, CLEAN, "seg")["tp"].sum() for name in forms]
    assert len(set(counts)) == 1


def test_masks_of_probability_1_at_half_the_size_are_resized() -> None:
    certain = Masks(lambda s: nn.functional.avg_pool2d((100 * s).sigmoid(), 2))
    model = load(ModelRequest("x", module=certain), "seg")
    assert model.probabilities([np.full((40, 50, 3), 255, np.uint8)])[0].min() > 0.999


def test_logits_in_the_place_of_probabilities_are_refused() -> None:
    changing = Masks(lambda s: s.sigmoid() if float(s.std()) > 1 else s)
    model = load(ModelRequest("x", module=changing), "seg")
    with pytest.raises(RunError, match=r"(?s)not return probabilities for all images.* -3 to -3"):
        model.probabilities([np.zeros((40, 50, 3), np.uint8)])


def test_a_network_with_probabilities_can_be_exported_for_any_number_of_images() -> None:
    network = load(ModelRequest("x", module=Masks(torch.sigmoid)), "seg").network
    images, sizes = torch.rand(2, 3, 40, 48), ({0: torch.export.Dim("batch", max=64)},)
    exported = torch.export.export(network, (images,), dynamic_shapes=sizes, strict=False)
    images = torch.rand(3, 3, 40, 48)
    torch.testing.assert_close(exported.module()(images), network(images))


def test_a_segmenters_mean_and_std_are_those_that_are_typed(tmp_path: Path) -> None:
    image = np.full((40, 50, 3), 128, np.uint8)
    settings = {"crop": 32, "mean": (0.25,) * 3, "std": (0.5,) * 3}
    request = ModelRequest("x", preprocessing=settings, module=Masks(lambda s: s))
    model = load(request, "seg")
    expected = 1 / (1 + np.exp(-(12 * (128 / 255 - 0.25) / 0.5 - 3)))
    np.testing.assert_allclose(model.probabilities([image])[0], expected, rtol=1e-5)
    assert model.preprocessing.window == 32
    with pytest.raises(UsageError, match="`--resize` cannot be used with the segmenter"):
        load(ModelRequest("x", preprocessing={"resize": 32}, module=Masks(lambda s: s)))
    with pytest.raises(UsageError, match="is a classifier"):
        load(ModelRequest("x", preprocessing=SMALL, module=Small()), "seg")


def test_the_window_of_a_network_of_one_size_is_no_default_of_the_program() -> None:
    class Fixed(Masks):
        def forward(self, x: torch.Tensor) -> object:
            assert x.shape[2:] == (48, 48)
            return super().forward(x)

    notes = load(ModelRequest("x", module=Fixed(lambda s: s)), "seg").notes
    assert any("windows of 48 pixels (the size of its input)" in note for note in notes)
    notes = load(ModelRequest("x", module=Masks(lambda s: s)), "seg").notes
    assert any("by default: windows of 256 pixels (`--crop`)" in note for note in notes)


# The command line, from the working folder.


def test_the_command_takes_a_network_of_ones_own(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    def robust(network: str, *arguments: str) -> tuple[object, str, str]:
        small = ("--data", "cifar10-mini", "--limit", "10", "--resize", "32", "--crop", "32")
        settings = ("--transform", "grayscale", *small, "--device", "cpu", "--workers", "0")
        with pytest.raises(SystemExit) as stopped:
            main(["eval", "--model", network, *settings, *arguments], prog_name="robust")
        return (stopped.value.code, *capsys.readouterr())

    named = ("users_package.nets:build", "--model-arg", "width=4")
    code, out, err = robust(*named, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["predictions"] == 20
    assert not Path("runs").exists()
    code, out, err = robust(*named, "--out", "run")
    assert code == 0, err
    assert "they are read as cifar10" in out + err
    record = robustcli.Run(Path("run")).record.models[0]
    assert record.arguments == {"width": 4}
    assert record.builder == "import:users_package.nets:build"
    code, _, err = robust("users_package.nets:divides")
    assert code == 2
    assert "nets.py:27" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("folder", ["tuned", "runs/tuned"])
def test_a_mode_of_a_run_is_named_by_its_path(package: Path, folder: str) -> None:
    mode = package / folder / "freeze"
    mode.mkdir(parents=True)
    (mode / "weights.safetensors").touch()
    with pytest.raises(UsageError, match=rf"is a training run\.\n.*--model {folder}/freeze`"):
        load(ModelRequest(f"{folder}:freeze"), "cls")


def test_code_is_not_imported_unless_it_is_named(package: Path) -> None:
    Path("models.py").write_text(textwrap.dedent("raise SystemExit('imported')"))
    load(ModelRequest("users_package.nets:build", preprocessing=SMALL))
    with pytest.raises(UsageError, match="ends the program when it is imported"):
        load(ModelRequest("models:build", preprocessing=SMALL))
