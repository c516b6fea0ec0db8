"""Bad input is refused with one clear line; weights come from a folder only if they fit."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_helpers import image_alone, make_engine, submit
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion_plugin import ImageRequest, load_pipeline
from diffusion_plugin.pipelines.base import Pipeline
from neustream.catalog.images import HUB_REVISIONS, model_spec


def refusal(action: Any) -> str:
    """The message of the ValueError that the action raises; one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what the caller looks at
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be a whole number in 1…1000, got 0"),
        ({"steps": 1001}, "steps must be a whole number in 1…1000, got 1001"),
        ({"steps": 5.0}, "steps must be a whole number in 1…1000, got 5.0"),
        ({"seed": -1}, "seed must be a whole number in 0…9223372036854775807, got -1"),
        ({"size": 33}, "size must be a multiple of 8 pixels, got 33"),
        ({"size": 0}, "size must be a multiple of 8 pixels, got 0"),
        ({"slo_scale": 0.9}, "an SLO scale must be at least 1, got 0.9"),
        ({"slo_scale": float("nan")}, "an SLO scale must be at least 1, got nan"),
        ({"slo_ms": 0}, "SLO e2el_ms must be above 0, got 0"),
        ({"guidance": float("inf")}, "guidance must be a finite number, got inf"),
        ({"on_miss": "retry"}, "on_miss must be 'reject' or 'demote', got 'retry'"),
    ],
)
def test_values_out_of_any_models_range(fields: dict[str, Any], message: str) -> None:
    assert refusal(lambda: ImageRequest(**{"steps": 5, **fields})) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "dit-nano needs a class_label in 0…999"),
        ({"class_label": 1000}, "class_label must be a whole number in 0…999, got 1000"),
        ({"class_label": -1}, "class_label must be a whole number in 0…999, got -1"),
        ({"class_label": 1, "prompt": "a cat"}, "dit-nano takes no prompt"),
        ({"class_label": 1, "size": 64}, "this pipeline makes images of 32 pixels a side, got size 64"),
        ({"class_label": 1, "schedule": "euler"}, "dit-nano has no schedule 'euler'; it has ddim, ddpm"),
    ],
)
def test_what_dit_cannot_make(dit: Pipeline, fields: dict[str, Any], message: str) -> None:
    assert refusal(lambda: submit(make_engine(dit), ImageRequest(steps=5, **fields))) == message


def test_what_stable_diffusion_cannot_make(sd: Pipeline) -> None:
    assert refusal(lambda: sd.prepare(ImageRequest(steps=5))) == "sd-nano needs a prompt, got None"
    with_label = ImageRequest(steps=5, prompt="a", class_label=1)
    assert refusal(lambda: sd.prepare(with_label)) == "sd-nano takes no class_label"


def test_pictures_that_cannot_be_read(palette: Pipeline, tmp_path: Path) -> None:
    no_picture = tmp_path / "notes.png"
    no_picture.write_text("this is no picture")
    cut = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:60])

    def message(**fields: Any) -> str:
        return refusal(lambda: palette.prepare(ImageRequest(steps=5, **fields)))

    assert message() == "palette-nano needs an image to fill in"
    assert message(image=tmp_path / "none.png") == f"input image '{tmp_path}/none.png' cannot be read: no such file"
    assert message(image=no_picture) == f"input image '{no_picture}' cannot be read: not a picture of a known format"
    assert message(image=cut).startswith(f"input image '{cut}' cannot be read: ")
    assert message(image=tmp_path).startswith(f"input image '{tmp_path}' cannot be read: ")
    assert message(image=7) == "input image must be a path, a PIL image or a tensor, got int"
    assert message(image=torch.zeros(16, 16)) == (
        "an input image must be a float tensor of shape [3, H, W], got float32 [16, 16]"
    )
    assert message(image=torch.full((3, 16, 16), 2.0)) == "an input image must be a tensor of values in 0…1"
    good = Image.new("RGB", (40, 30), "red")
    assert message(image=good, mask=str(no_picture)).startswith(f"mask '{no_picture}' cannot be read: ")


def test_a_picture_from_a_file_is_what_the_same_picture_from_pil_is(palette: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "ramp.png"
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(path)
    from_file = palette.prepare(ImageRequest(steps=5, image=str(path), mask=picture.convert("L")))
    from_pil = palette.prepare(ImageRequest(steps=5, image=picture, mask=picture.convert("L")))
    assert from_file["known"].shape == (3, palette.size, palette.size)
    assert torch.equal(from_file["known"], from_pil["known"])
    assert from_file["hole"][0, -1].all()
    assert not from_file["hole"][0, 0].any()


def test_models_devices_and_sizes_that_are_not_there() -> None:
    known = "dit-s-2-256, dit-xl-2-256, palette-256, sd15-256, sd15-512, dit-nano, sd-nano, palette-nano"
    assert refusal(lambda: load_pipeline("dit-tiny")) == f"unknown model 'dit-tiny'; there are {known}"
    assert refusal(lambda: load_pipeline("sd-nano", size=36)) == "size must be a multiple of 8 pixels, got 36"
    assert refusal(lambda: load_pipeline("dit-nano", size=40)) == "size must be a multiple of 16 pixels, got 40"
    assert refusal(lambda: load_pipeline("dit-nano", device="gpu")).startswith("device 'gpu' cannot be used: ")


@pytest.mark.parametrize(("name", "size"), [("dit-nano", 48), ("sd-nano", 40), ("palette-nano", 24)])
def test_a_model_makes_images_of_another_size(name: str, size: int) -> None:
    pipeline = load_pipeline(name, device="cpu", size=size)
    assert image_alone(pipeline, ImageRequest(steps=2, **pipeline.example(0))).shape == (3, size, size)


def save_weights(pipeline: Pipeline, folder: Path) -> None:
    """The pipeline's networks in diffusers' layout."""
    for name, network in pipeline.networks.items():
        network.save_pretrained(folder / name)


def test_weights_from_a_folder_give_the_images_of_the_model_that_was_saved(tmp_path: Path) -> None:
    other = load_pipeline("sd-nano", device="cpu", seed=7)
    save_weights(other, tmp_path)
    other.tokenizer.save_pretrained(tmp_path / "tokenizer")  # type: ignore[attr-defined]
    loaded = load_pipeline("sd-nano", device="cpu", weights=str(tmp_path))
    request = ImageRequest(steps=4, prompt="a lighthouse", seed=2)
    image = image_alone(loaded, request)
    assert torch.equal(image, image_alone(other, request))
    assert not torch.equal(image, image_alone(load_pipeline("sd-nano", device="cpu"), request))


def test_a_checkpoints_own_scheduler_config_is_used(tmp_path: Path) -> None:
    save_weights(load_pipeline("dit-nano", device="cpu"), tmp_path)
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "PNDMScheduler", "beta_start": 0.001, "beta_schedule": "linear", "skip_prk_steps": True}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    loaded = load_pipeline("dit-nano", device="cpu", weights=str(tmp_path))
    assert loaded.scheduler["beta_start"] == 0.001
    assert loaded.scheduler["beta_end"] == model_spec("dit-nano").scheduler["beta_end"]
    image_alone(loaded, ImageRequest(steps=2, class_label=1))


def test_weights_that_do_not_fit_name_the_first_tensor_that_differs(tmp_path: Path) -> None:
    save_weights(load_pipeline("dit-nano", device="cpu"), tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = {key: tensor.clone() for key, tensor in load_file(path).items()}  # the file itself is overwritten

    def load() -> Pipeline:
        return load_pipeline("dit-nano", device="cpu", weights=str(tmp_path))

    assert load().spec.name == "dit-nano"
    name = "transformer_blocks.1.attn1.to_q.weight"
    save_file({**whole, name: torch.zeros(32, 16)}, path)
    shapes = "has shape [32, 16], expected [32, 32]"
    assert refusal(load) == f"weights: {path}: tensor transformer.{name} {shapes}"
    save_file({key: value for key, value in whole.items() if key != name}, path)
    assert refusal(load) == f"weights: {path} lacks tensor transformer.{name} of shape [32, 32]"
    save_file({**whole, "extra": torch.zeros(1)}, path)
    assert refusal(load) == f"weights: {path} has tensor transformer.extra, which this model has not"
    path.write_bytes(b"nonsense")
    assert refusal(load).startswith(f"weights: {path} cannot be read (")
    path.unlink()
    assert refusal(load).startswith(f"weights: {path.parent} has none of ")


def test_weights_of_early_checkpoints_are_renamed(tmp_path: Path) -> None:
    save_weights(load_pipeline("dit-nano", device="cpu", seed=3), tmp_path)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {}
    for key, tensor in load_file(path).items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        old[key] = tensor.clone()
    assert any("proj_attn" in key for key in old)
    save_file(old, path)
    request = ImageRequest(steps=3, class_label=5)
    loaded = load_pipeline("dit-nano", device="cpu", weights=str(tmp_path))
    saved = load_pipeline("dit-nano", device="cpu", seed=3)
    assert torch.equal(image_alone(loaded, request), image_alone(saved, request))


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "none", "a/b/c", "~/none", "a/b c"):
        assert refusal(lambda name=name: load_pipeline("dit-nano", weights=name)) == (
            f"weights '{name}': no such folder, and not a hub id of the form org/name@COMMIT"
        )


def test_pickles_are_refused_and_the_line_says_what_to_do(tmp_path: Path) -> None:
    """A file that would leave a mark if it were unpickled is not even opened."""
    save_weights(load_pipeline("dit-nano", device="cpu"), tmp_path)
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    where = tmp_path / "vae"
    (where / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": Evil()}, where / "diffusion_pytorch_model.bin")
    assert refusal(lambda: load_pipeline("dit-nano", device="cpu", weights=str(tmp_path))) == (
        f"weights: {where}/diffusion_pytorch_model.bin is a pickle, which can run code when it is read; "
        "give safetensors: save_pretrained(FOLDER, safe_serialization=True) of diffusers makes one"
    )
    assert not mark.exists()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub with sd-nano's weights, each of them several times over as on real ones; returns what was asked of it."""
    remote, local, asked = tmp_path / "remote", tmp_path / "local", list[dict[str, Any]]()
    pipeline = load_pipeline("sd-nano", device="cpu", seed=7)
    save_weights(pipeline, remote)
    pipeline.tokenizer.save_pretrained(remote / "tokenizer")  # type: ignore[attr-defined]
    for path in list(remote.rglob("*.safetensors")):
        for other in (f"{path.stem}.fp16.safetensors", f"{path.stem}.bin", f"{path.stem}.non_ema.safetensors"):
            (path.parent / other).write_text("a second copy")
    (remote / "v1-5-pruned.ckpt").write_text("and one more")

    def snapshot_download(repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append({"id": repo_id, "revision": revision})
        for path in remote.rglob("*"):
            name = path.relative_to(remote)
            if path.is_file() and any(fnmatch.fnmatch(str(name), pattern) for pattern in allow_patterns):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, local / name)
        asked[-1]["files"] = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_fetched_at_its_commit_and_each_network_once(hub: list[dict[str, Any]]) -> None:
    loaded = load_pipeline("sd-nano", device="cpu", weights=f"someone/tiny-sd@{COMMIT}")
    (asked,) = hub
    assert (asked["id"], asked["revision"]) == ("someone/tiny-sd", COMMIT)
    weights = [name for name in asked["files"] if not name.startswith("tokenizer/")]
    assert weights == [
        "safety_checker/model.safetensors",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    request = ImageRequest(steps=3, prompt="a lighthouse", seed=2)
    saved = load_pipeline("sd-nano", device="cpu", seed=7)
    assert torch.equal(image_alone(loaded, request), image_alone(saved, request))


def test_a_hub_id_of_the_catalogue_needs_no_commit_and_others_do(hub: list[dict[str, Any]]) -> None:
    (pinned, commit), *_ = HUB_REVISIONS.items()
    load_pipeline("sd-nano", device="cpu", weights=pinned)
    assert hub.pop()["revision"] == commit
    load_pipeline("sd-nano", device="cpu", weights=f"{pinned}@{COMMIT}")
    assert hub.pop()["revision"] == COMMIT
    assert refusal(lambda: load_pipeline("sd-nano", weights="someone/tiny-sd")) == (
        f"weights 'someone/tiny-sd': say which commit, as someone/tiny-sd@COMMIT; without one there is {pinned}"
    )
    for revision in ("main", "v1.0", COMMIT[:12], COMMIT.upper()):
        name = f"someone/tiny-sd@{revision}"
        assert refusal(lambda name=name: load_pipeline("sd-nano", weights=name)) == (
            f"weights '{name}': a commit is 40 hexadecimal digits, as tags and branches move"
        )
    assert hub == []


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("a page of text")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    name = f"someone/tiny-sd@{COMMIT}"
    assert refusal(lambda: load_pipeline("sd-nano", weights=name)) == (
        f"weights '{name}': cannot be fetched (ConnectionError)"
    )


def test_every_pinned_revision_is_a_commit() -> None:
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in HUB_REVISIONS.values())
