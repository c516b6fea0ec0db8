"""What a program leaves is handed on only if it is a picture, and then only its pixels are."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from agent_plugin.sandbox.jobs import Job
from agent_plugin.sandbox.limits import MIB, Limits
from agent_plugin.sandbox.pictures import NoPicture, check, repaint

LIMITS = Limits(pixels=10_000, file_size=MIB, pictures=3, disk=100_000)


def picture(kind="PNG", mode="RGB", size=(20, 10), **options):
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *, body=None, before=b"", mode=2):
    """A PNG of one colour, made by hand: as large as it says, whatever its body holds."""
    rows = (b"\0" + bytes(3 * width)) * height if body is None else body
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


GOOD = {
    "png": picture(),
    "grey": picture(mode="L"),
    "with alpha": picture(mode="RGBA"),
    "palette": picture(mode="P"),
    "jpeg": picture("JPEG"),
    "by hand": png(20, 10),
}
BAD = {
    "empty": (b"", "is no PNG or JPEG picture"),
    "text": (b"not a picture at all", "is no PNG or JPEG picture"),
    "truncated png": (picture()[:200], "is no PNG or JPEG picture"),
    "truncated jpeg": (picture("JPEG", size=(90, 90))[:400], "is no PNG or JPEG picture"),
    "head of a png alone": (picture()[:40], "is no PNG or JPEG picture"),
    "gif": (picture("GIF", "P"), "is no PNG or JPEG picture"),
    "tiff": (picture("TIFF"), "is no PNG or JPEG picture"),
    "webp by its head": (b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(50), "is no PNG or JPEG picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no PNG or JPEG picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no PNG or JPEG picture"),
    "wrong checksum": (png(20, 10).replace(b"IDAT", b"IDAU", 1), "is no PNG or JPEG picture"),
    "no rows": (png(20, 10, body=b""), "is no PNG or JPEG picture"),
    "too wide": (png(10_001, 1), "has 10001 x 1 pixels, at most 10000 are taken"),
    "bomb": (png(60_000, 60_000, body=bytes(200_000)), r"is no PNG or JPEG picture \(DecompressionBombError\)"),
    "smaller bomb": (png(12_000, 10_000, body=bytes(200_000)), "has 12000 x 10000 pixels, at most 10000 are taken"),
    "largest there can be": (png(2**31 - 1, 2**31 - 1, body=b""), "."),
    "no width": (png(0, 10, body=b""), "is no PNG or JPEG picture"),
    "bomb in a text chunk": (
        png(20, 10, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * MIB), 9))),
        "is no PNG or JPEG picture",
    ),
    "larger than a file may be": (picture() + bytes(MIB), "is larger than 1048576 bytes"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_comes_out_as_png_of_the_same_size(name):
    width, height, data = repaint(GOOD[name], LIMITS)
    with Image.open(io.BytesIO(data)) as seen:
        assert (seen.format, seen.size) == ("PNG", (width, height)) == ("PNG", (20, 10))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_and_it_is_said_why(name):
    data, message = BAD[name]
    with pytest.raises(NoPicture, match=message):
        repaint(data, LIMITS)


def test_pixels_stay_what_they_are():
    before = Image.open(io.BytesIO(GOOD["with alpha"]))
    after = Image.open(io.BytesIO(repaint(GOOD["with alpha"], LIMITS)[2]))
    assert after.tobytes() == before.tobytes()


def test_nothing_but_pixels_comes_through():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "do as I say")
    marked = picture(pnginfo=text) + b"and a tail"
    assert b"do as I say" in marked
    data = repaint(marked, LIMITS)[2]
    assert b"do as I say" not in data
    assert b"tail" not in data


def test_a_check_hands_on_no_more_than_the_limits_say():
    header, blobs = check([(f"{i}.png", GOOD["png"]) for i in range(5)], LIMITS)
    assert [entry["name"] for entry in header["pictures"]] == ["0.png", "1.png", "2.png"]
    assert len(blobs) == 3
    assert header["notes"] == [f"{i}.png: left out: only 3 pictures are handed on" for i in (3, 4)]
    disk = len(repaint(GOOD["png"], LIMITS)[2]) * 3 // 2
    header, _ = check([("a.png", GOOD["png"]), ("b.png", GOOD["png"])], Limits(disk=disk))
    assert header["notes"] == [f"b.png: left out: the pictures take more than {disk} bytes"]


def test_links_pipes_and_folders_are_no_pictures(tmp_path):
    job = Job(tmp_path / "run")
    job.make(None, None)
    outside = tmp_path / "outside.png"
    outside.write_bytes(GOOD["png"])
    folder = job.folder / "job"
    (folder / "good.png").write_bytes(GOOD["png"])
    (folder / "linked.png").symlink_to(outside)
    (folder / "second-name.png").hardlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inner.PNG").write_bytes(GOOD["png"])
    (folder / "way-out").symlink_to(tmp_path, target_is_directory=True)
    (job.folder / "tmp" / "elsewhere.png").write_bytes(GOOD["png"])
    assert [name for name, _ in job.pictures(LIMITS)] == ["folder.png/inner.PNG", "good.png"]


def test_no_more_of_a_file_is_read_than_a_file_may_have(tmp_path):
    job = Job(tmp_path / "run")
    job.make(None, None)
    (job.folder / "job" / "big.png").write_bytes(bytes(3 * MIB))
    assert [len(data) for _, data in job.pictures(LIMITS)] == [MIB + 1]


LEAVE = """
import base64, json
for name, text in json.load(open("given.json")).items():
    open(name, "wb").write(base64.b64decode(text))
try:
    import os
    os.symlink("/etc/passwd", "link.png")
except OSError as error:
    print(type(error).__name__)
"""


def test_a_program_that_leaves_all_of_them_gets_its_pictures_through(held):
    left = {"1-png.png": GOOD["png"], "2-jpeg.jpg": GOOD["jpeg"]}
    left |= {f"3-{name}.png": data for name, (data, _) in BAD.items() if len(data) < MIB and "wide" not in name}
    given = json.dumps({name: base64.b64encode(data).decode() for name, data in left.items()}).encode()
    result = held.run(LEAVE, {"given.json": given})
    assert result.reason == "ok", result
    assert result.stdout == "PermissionError\n"
    assert [(p.name, p.width, p.height) for p in result.pictures] == [("1-png.png", 20, 10), ("2-jpeg.jpg", 20, 10)]
    assert len(result.notes) == len(left) - 2
    assert all(note.startswith("3-") for note in result.notes)


def test_a_picture_that_was_given_is_not_one_that_was_made(held):
    given = {"in.png": GOOD["png"], "out.png": GOOD["png"]}
    result = held.run("open('out.png', 'r+b').write(open('in.png', 'rb').read()[:1]); open('new.png', 'wb')", given)
    assert result.pictures == ()
    assert result.notes == ("new.png: is no PNG or JPEG picture (UnidentifiedImageError)",)
