"""A text is a text, whatever it names: nothing is fetched or opened because somebody wrote where it is."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers.base.modules import Router

from opengcl.encode import encode_texts
from opengcl.encoders import two_towers
from opengcl.inputs import text_features
from tests.builders import MINILM, clip, picture, static
from tests.serving import make_shop, running


@pytest.fixture
def listening() -> Iterator[tuple[str, list[str]]]:
    """An address that notes who connects to it."""
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def note() -> None:
            while True:
                try:
                    other, _ = listener.accept()
                except OSError:
                    return
                seen.append("connected")
                other.close()

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def hostile(listening: tuple[str, list[str]], tmp_path: Path) -> list[str]:
    """Texts that sentence-transformers takes for pictures, sounds or films."""
    drawn = picture(np.random.default_rng(0))
    for name in ("secret.png", "SECRET.JPG", "secret.mp3", "secret.mp4"):
        (tmp_path / name).write_bytes(drawn)
    coded = base64.b64encode(drawn).decode()
    return [
        *(str(tmp_path / name) for name in ("secret.png", "SECRET.JPG", "secret.mp3", "secret.mp4")),
        *(f"{listening[0]}/{name}" for name in ("x.png", "x.webp?a=b", "x.mp3", "x.mp4")),
        "https://youtu.be/x",
        *(f"data:image/png;base64,{one}" for one in ("", coded)),
    ]


@pytest.mark.parametrize("kind", ["clip", "static", "towers"])
def test_no_text_is_opened(
    kind: str,
    hostile: list[str],
    listening: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = static() if kind == "static" else clip()
    if kind == "towers":
        encoder.save(str(tmp_path / "clip"))
        encoder = two_towers(text=MINILM, image=str(tmp_path / "clip"), dim=8)
        assert isinstance(encoder[0], Router)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", opened)
    every = text_features(encoder, ["redshoe", *hostile], "query")
    alone = [text_features(encoder, [text], "document") for text in hostile]
    assert all("pixel_values" not in features for features in (every, *alone))
    assert listening[1] == []


def test_nor_by_the_server(hostile: list[str], listening: tuple[str, list[str]], tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop")
    with running([shop]) as server:
        for text in hostile:
            replies = [
                server.get("/search", params={"q": text}),
                server.post("/search", {"query": {"text": "x", "negatives": [{"text": text}]}}),
                server.post("/v1/embeddings", {"input": [text, "redshoe"], "model": "a"}),
                server.post("/documents", {"documents": [{"doc_id": "x", "fields": {"title": text}}]}),
            ]
            assert [reply.status_code for reply in replies] == [200] * 4, text
            vector = replies[2].json()["data"][0]["embedding"]
            np.testing.assert_allclose(vector, encode_texts(shop.model, [text])[0], atol=1e-5)
        assert listening[1] == []
