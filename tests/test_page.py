"""The search page in a real browser against the real server."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    Route,
    expect,
    sync_playwright,
)

from opengcl.serve.keys import ApiKeys
from tests import chromium
from tests.page_shop import HOSTILE, page_shop
from tests.serving import Running

FASHION = Path(__file__).resolve().parents[1] / ".." / "shared" / "fashion"
PHONE, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 860}
PATIENCE = 20_000  # ms; a busy machine is no failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not chromium.path():
        pytest.skip(chromium.MISSING)
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with page_shop(folder, FASHION if (FASHION / "dataset.yaml").is_file() else None) as running:
        yield running


class Visit:
    """One tab, and what it did: requests, and what the console said."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[Request] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def _hear(self, message: ConsoleMessage) -> None:
        # Some drawn products have no picture; the browser reports every 404.
        if message.type in ("error", "warning") and "/image?" not in message.location.get("url", ""):
            self.said.append(message.text)

    def open(self, address: str = "") -> None:
        self.page.goto(f"{self.url}/{address}")

    def start(self) -> None:
        """Opens the empty page and waits until its own searches are over."""
        self.open()
        settled(self.page)

    def search(self, text: str) -> None:
        """Types a query, and waits for what it finds."""
        box(self.page).fill(text)
        with self.answer():
            box(self.page).press("Enter")
        settled(self.page)

    def answer(self) -> Any:
        """Waits for the answer to a search that the block brings about."""
        return self.page.expect_response(is_search, timeout=PATIENCE)

    def state(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)


@pytest.fixture
def new_visit(browser: Browser, server: Running) -> Iterator[Callable[..., Visit]]:
    """Makes tabs, and checks at the end that none asked another host or complained."""
    visits: list[tuple[Visit, bool]] = []

    def make(*, viewport: dict[str, int] = WIDE, quiet: bool = True, url: str = server.url, **options: Any) -> Visit:
        context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE)
        visits.append((Visit(context.new_page(), url), quiet))
        return visits[-1][0]

    yield make
    for visit, quiet in visits:
        hosts = {
            urlsplit(request.url).netloc for request in visit.requests if not request.url.startswith(("data:", "blob:"))
        }
        assert hosts <= {urlsplit(visit.url).netloc}
        assert not quiet or visit.said == []
        visit.page.context.close()


@pytest.fixture
def visit(new_visit: Callable[..., Visit]) -> Visit:
    made: Visit = new_visit()
    return made


@pytest.fixture(scope="module")
def queries(server: Running) -> list[str]:
    found: list[str] = server.get("/suggest").json()
    return found


def is_search(response: Response) -> bool:
    return urlsplit(response.url).path == "/search"


def box(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Search products")


def cards(page: Page) -> Locator:
    return page.locator("#results .grid a")


def shown(page: Page) -> list[str]:
    """Ids of the products in the grid."""
    return [
        str(found) for found in page.eval_on_selector_all("#results .grid a", "found => found.map(a => a.dataset.open)")
    ]


def settled(page: Page) -> None:
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)


def ids(response: Response) -> list[str]:
    return [hit["doc_id"] for hit in response.json()["hits"]]


def asked(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(response.request.post_data or "")
    return body


def photo(folder: Path, size: tuple[int, int] = (1600, 900)) -> Path:
    file = folder / "photo.png"
    Image.linear_gradient("L").resize(size).convert("RGB").save(file)
    return file


def test_search_as_you_type_shows_products_with_picture_title_price_and_score(visit: Visit, queries: list[str]) -> None:
    visit.open()
    expect(box(visit.page)).to_be_focused()
    settled(visit.page)
    before = len(visit.requests)

    def is_whole(response: Response) -> bool:
        return is_search(response) and asked(response)["query"].get("text") == queries[0]

    with visit.page.expect_response(is_whole, timeout=PATIENCE) as reply:
        box(visit.page).press_sequentially(queries[0], delay=10)
    settled(visit.page)
    searches = [one for one in visit.requests[before:] if urlsplit(one.url).path == "/search"]
    assert len(searches) < len(queries[0]) / 2  # not one a letter
    hits = reply.value.json()["hits"]
    assert shown(visit.page)[:24] == [hit["doc_id"] for hit in hits]
    first = cards(visit.page).first
    assert f"{hits[0]['score']:.3f}" in first.inner_text()
    assert hits[0]["fields"]["title"] in first.inner_text()
    assert f"{hits[0]['fields']['price']:.2f}" in first.inner_text()
    expect(first.locator(".shot.there, .shot.empty")).to_have_count(1)
    assert visit.page.locator(".shot.there img").first.evaluate("image => image.naturalWidth") > 1
    expect(visit.page.get_by_role("status")).to_contain_text(re.compile(r"24 of \d+ products"))
    assert visit.state() == {"q": [queries[0]]}


def test_an_older_answer_is_never_shown(visit: Visit, queries: list[str]) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        text = json.loads(route.request.post_data or "")["query"].get("text")
        held.append(route) if text == queries[0] else route.continue_()

    visit.start()
    visit.page.route("**/search", hold)
    box(visit.page).fill(queries[0])
    box(visit.page).press("Enter")
    visit.page.wait_for_timeout(100)
    visit.search(queries[1])
    newer = shown(visit.page)
    assert len(held) == 1
    held[0].fulfill(json={"model": "a", "took_ms": 1, "total": 0, "hits": []})
    visit.page.wait_for_timeout(300)
    assert shown(visit.page) == newer != []


def test_what_is_typed_before_the_page_is_ready_is_searched(visit: Visit, queries: list[str]) -> None:
    held: list[Route] = []
    visit.page.route("**/models", lambda route: held.append(route))
    visit.open()
    box(visit.page).fill(queries[0])
    box(visit.page).press("Enter")
    with visit.answer() as reply:
        held[0].continue_()
    assert asked(reply.value)["query"]["text"] == queries[0]
    expect(box(visit.page)).to_have_value(queries[0])
    visit.page.wait_for_timeout(300)
    expect(visit.page.get_by_role("option")).to_have_count(0)  # Enter has ended the typing


def test_what_is_typed_on_before_the_page_is_ready_is_suggested_for(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/models", lambda route: held.append(route))
    visit.open()
    box(visit.page).press_sequentially("s")
    held[0].continue_()
    visit.page.get_by_role("option").first.wait_for()
    cards(visit.page).first.wait_for()
    assert visit.state()["q"] == ["s"]


def test_suggestions_by_keyboard_and_mouse(visit: Visit) -> None:
    visit.open()
    word = "s"
    box(visit.page).press_sequentially(word)
    options = visit.page.get_by_role("option")
    options.first.wait_for()
    expect(box(visit.page)).to_have_attribute("aria-expanded", "true")
    second = options.nth(1).inner_text()
    assert word in second
    box(visit.page).press("ArrowDown")
    box(visit.page).press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    assert box(visit.page).get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
    box(visit.page).press("Enter")
    expect(box(visit.page)).to_have_value(second)
    expect(options).to_have_count(0)
    assert visit.state()["q"] == [second]

    box(visit.page).fill(word)
    options.first.wait_for()
    box(visit.page).press("ArrowDown")
    box(visit.page).press("Escape")
    expect(options).to_have_count(0)
    box(visit.page).press("Space")
    box(visit.page).press("Backspace")
    options.first.wait_for()
    first = options.first.inner_text()
    options.first.click()
    expect(box(visit.page)).to_have_value(first)

    box(visit.page).fill(word)
    options.first.wait_for()
    box(visit.page).press("ArrowDown")
    box(visit.page).press_sequentially("xy")  # what is typed after a choice counts
    box(visit.page).press("Enter")
    expect(box(visit.page)).to_have_value(f"{word}xy")


def test_a_chosen_picture_is_made_small_and_mixed_with_words(visit: Visit, tmp_path: Path, queries: list[str]) -> None:
    visit.start()
    with visit.answer() as reply:
        visit.page.get_by_label("Search with a picture").set_input_files(photo(tmp_path))
    body = asked(reply.value)
    with Image.open(io.BytesIO(base64.b64decode(body["query"]["image"]))) as sent:
        assert (sent.format, sent.size) == ("JPEG", (768, 432))
    assert "text" not in body["query"]
    settled(visit.page)
    assert shown(visit.page)[:24] == ids(reply.value)
    expect(visit.page.get_by_alt_text("Your picture")).to_be_visible()
    expect(visit.page.get_by_role("slider")).to_have_count(0)

    visit.search(queries[0])
    slider = visit.page.get_by_role("slider", name="Weight of the picture")
    with visit.answer() as reply:
        slider.press("ArrowRight")
    query = asked(reply.value)["query"]
    assert (query["text"], query["text_weight"], query["image_weight"]) == (queries[0], 0.9, 1.1)
    assert visit.state()["share"] == ["55"]
    expect(slider).to_be_focused()

    with visit.answer() as reply:
        visit.page.reload()  # the tab keeps the picture
    assert asked(reply.value)["query"]["image"] == body["query"]["image"]
    with visit.answer() as reply:
        visit.page.get_by_role("button", name="Remove the picture").click()
    assert "image" not in asked(reply.value)["query"]


DROP = """([name, bytes, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], name, { type }));
  return transfer;
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(visit: Visit, tmp_path: Path, way: str) -> None:
    visit.start()
    data = base64.b64encode(photo(tmp_path, (40, 80)).read_bytes()).decode()
    transfer = visit.page.evaluate_handle(DROP, ["photo.png", data, "image/png"])
    with visit.answer() as reply:
        if way == "drop":
            visit.page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
            expect(visit.page.locator("#drop")).to_have_class("drop over")
            visit.page.dispatch_event("main", "drop", {"dataTransfer": transfer})
        else:
            paste = (
                "data => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))"
            )
            visit.page.evaluate(paste, transfer)
    with Image.open(io.BytesIO(base64.b64decode(asked(reply.value)["query"]["image"]))) as sent:
        assert sent.size == (40, 80)
    expect(visit.page.locator("#drop")).to_have_class("drop")


def test_what_is_no_picture_is_refused_and_a_shared_picture_is_missed(visit: Visit, tmp_path: Path) -> None:
    visit.start()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "text.txt").write_text("words")
    for name, told in (("broken.png", "not a picture that this browser can read"), ("text.txt", "not a picture")):
        visit.page.get_by_label("Search with a picture").set_input_files(tmp_path / name)
        expect(visit.page.get_by_role("alert")).to_contain_text(told)
    assert visit.state() == {}
    visit.open("?picture=0123456789abc")
    expect(visit.page.get_by_role("alert").last).to_contain_text("Choose it again")
    assert not any(
        urlsplit(request.url).path == "/search" and "picture" in (request.post_data or "") for request in visit.requests
    )


def test_more_of_and_less_of(visit: Visit, queries: list[str]) -> None:
    visit.start()
    visit.search(f'{queries[0]} -leather +"deep red"')
    page = visit.page
    expect(box(page)).to_have_value(queries[0])
    assert visit.state() == {"q": [queries[0]], "minus": ["leather"], "plus": ["deep red"]}
    page.get_by_role("button", name="less of", exact=False).last.click()
    with visit.answer() as reply:
        page.keyboard.type("stripes")
        page.keyboard.press("Enter")
    query = asked(reply.value)["query"]
    assert query["text"] == f"{queries[0]} deep red"
    assert query["negatives"] == [{"text": "leather"}, {"text": "stripes"}]
    with visit.answer() as reply:
        page.get_by_role("button", name="Remove less of leather").click()
    assert asked(reply.value)["query"]["negatives"] == [{"text": "stripes"}]
    with visit.answer() as reply:
        page.get_by_role("button", name="Remove more of deep red").click()
    assert asked(reply.value)["query"]["text"] == queries[0]
    expect(page.get_by_role("button", name="Remove less of stripes")).to_be_focused()


def test_filters_by_number_list_and_switch(visit: Visit, queries: list[str]) -> None:
    visit.start()
    visit.search(queries[0])
    page = visit.page
    groups = page.locator("#filters details")
    assert groups.evaluate_all("found => found.map(one => one.dataset.field)") == [
        "price",
        "brand",
        "base_colour",
        "stock",
    ]
    with visit.answer():
        page.get_by_label("price from").fill("20")
        page.get_by_label("price from").press("Enter")
    with visit.answer():
        page.get_by_label("price to").fill("60.5")
        page.get_by_label("price to").press("Enter")
    with visit.answer() as reply:
        page.get_by_role("switch", name="Only with stock").check()
    fields = [hit["fields"] for hit in reply.value.json()["hits"]]
    assert fields
    assert all(20 <= one["price"] <= 60.5 and one["stock"] for one in fields)
    brands = list(dict.fromkeys(one["brand"] for one in fields))[:2]
    listed = [brand for brand in brands if page.locator("#choices-brand").get_by_label(brand, exact=True).count()]
    for brand in listed:
        with visit.answer() as reply:
            page.locator("#choices-brand").get_by_label(brand, exact=True).check()
    settled(page)
    assert listed
    assert {hit["fields"]["brand"] for hit in reply.value.json()["hits"]} == set(listed)
    assert shown(page) == ids(reply.value)
    assert visit.state()["f.price"] == ["20..60.5"]
    with visit.answer():
        page.go_back()
    assert visit.state().get("f.brand") == (listed[:1] if len(listed) > 1 else None)
    with visit.answer() as reply:
        page.get_by_role("button", name="Clear all").click()
    assert asked(reply.value)["where"] is None


def test_nothing_found_offers_the_way_back(visit: Visit) -> None:
    visit.open("?q=hat&f.price=1..2")
    expect(visit.page.locator(".trouble")).to_contain_text("No product matches the filters")
    with visit.answer():
        visit.page.get_by_role("button", name="Clear the filters").click()
    cards(visit.page).first.wait_for()


def test_back_forward_reload_and_a_shared_link(
    visit: Visit, new_visit: Callable[..., Visit], queries: list[str]
) -> None:
    visit.start()
    visit.search(queries[0])
    first = shown(visit.page)[:24]
    visit.search(queries[1])
    second = shown(visit.page)[:24]
    assert first != second
    visit.page.go_back()
    expect(box(visit.page)).to_have_value(queries[0])
    settled(visit.page)
    assert shown(visit.page)[:24] == first
    visit.page.go_forward()
    expect(box(visit.page)).to_have_value(queries[1])
    visit.page.reload()
    cards(visit.page).first.wait_for()
    assert shown(visit.page)[:24] == second
    other = new_visit()
    other.page.goto(visit.page.url)
    cards(other.page).first.wait_for()
    assert shown(other.page)[:24] == second
    visit.page.go_back()
    visit.page.go_back()
    expect(box(visit.page)).to_have_value("")
    expect(visit.page.locator(".idea").first).to_be_visible()


def test_the_empty_page_offers_queries_with_pictures(visit: Visit, queries: list[str]) -> None:
    visit.open()
    ideas = visit.page.locator(".idea")
    expect(ideas).to_have_count(6)
    expect(ideas.first.locator(".shot")).to_have_count(3)
    text = ideas.nth(2).locator(".name").inner_text()
    assert text in queries
    ideas.nth(2).click()  # the ideas' own pictures come from searches too, so the box and the cards tell
    expect(box(visit.page)).to_have_value(text)
    cards(visit.page).first.wait_for()


def test_scrolling_shows_more_until_the_end_each_once(visit: Visit, server: Running, queries: list[str]) -> None:
    where = "price <= 79.5"
    total = server.post("/search", {"query": {"text": queries[0]}, "where": where}).json()["total"]
    assert total == 150
    visit.open(f"?q={queries[0]}&f.price=..79.5")
    page = visit.page
    settled(page)
    more = page.get_by_role("button", name="Show more")
    for _ in range(60):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(60)
        if len(shown(page)) >= min(total, 120):
            break
    assert len(shown(page)) == 120  # five pages by themselves
    expect(more).to_be_visible()
    count = 120
    while count < total:
        with visit.answer():
            more.press("Enter")
        count = min(total, count + 24)
        expect(cards(page)).to_have_count(count)
        assert page.evaluate("document.activeElement.dataset.open") == shown(page)[(count - 1) // 24 * 24]
    expect(more).to_have_count(0)
    assert len(set(shown(page))) == total
    expect(page.get_by_role("status")).to_contain_text(f"{total} of {total}")


ENDS = """path => [0, path.getTotalLength()].map(
  at => path.getPointAtLength(at).y + path.ownerSVGElement.getBoundingClientRect().top)"""


def test_compare_draws_the_moves_of_shared_products(visit: Visit, server: Running, queries: list[str]) -> None:
    visit.start()
    visit.search(queries[0])
    page = visit.page
    page.get_by_role("radio", name="Compare").check()
    page.locator(".compare").wait_for()
    settled(page)
    body = {"query": {"text": queries[0]}, "k": 20}
    replies = [server.post("/search", {**body, "model": name}).json() for name in "ab"]
    lists = [[hit["doc_id"] for hit in reply["hits"]] for reply in replies]
    for side, name in enumerate(("model-0", "model-1")):
        rows = page.get_by_role("list", name=name).get_by_role("link")
        assert rows.evaluate_all("found => found.map(one => one.dataset.open)") == lists[side]
        assert f"{replies[side]['ndcg@10']:.3f}" in page.locator(".heading").nth(side).inner_text()
        judged = sum(hit["relevance"] is not None for hit in replies[side]["hits"])
        expect(page.get_by_role("list", name=name).locator(".judged")).to_have_count(judged)
    ranks = [{doc: place for place, doc in enumerate(one, 1)} for one in lists]
    moves = {doc: ranks[0][doc] - ranks[1][doc] for doc in lists[0] if doc in ranks[1]}
    assert moves
    expect(page.locator(".moves path")).to_have_count(len(moves))
    for doc, move in moves.items():
        line = page.locator(f'.moves path[data-line="{doc}"]')
        expect(line).to_have_class("up" if move > 0 else "down" if move < 0 else "same")
        ends = [page.locator(f'.ranked:nth-of-type({side}) [data-open="{doc}"]').bounding_box() for side in (1, 2)]
        drawn = line.evaluate(ENDS)
        assert drawn == pytest.approx([end["y"] + end["height"] / 2 for end in ends if end], abs=1.5)
    expect(page.locator(".gain.new")).to_have_count(20 - len(moves))
    expect(page.locator(".legend")).to_contain_text("Judged relevance")
    assert visit.state()["view"] == ["compare"]
    page.locator("[data-open]").first.hover()
    expect(page.locator(".row.marked").first).to_be_visible()
    with visit.answer() as reply:
        page.get_by_role("radio", name="model-1").check()
    assert asked(reply.value)["model"] == "b"


def test_one_product_with_others_like_it(visit: Visit, queries: list[str]) -> None:
    visit.start()
    visit.search(queries[0])
    page = visit.page
    first = shown(page)[0]
    with visit.answer() as reply:
        cards(page).first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    query = asked(reply.value)["query"]
    assert query["image"]
    assert query["text"]
    assert visit.state()["doc"] == [first]
    expect(dialog.locator("dd").last).to_have_text(first)
    similar = [doc for doc in ids(reply.value) if doc != first][:12]
    expect(dialog.locator(".grid a")).to_have_count(len(similar))
    with visit.answer():
        dialog.locator(".grid a").first.click()
    expect(dialog.locator("dd").last).to_have_text(similar[0])
    page.go_back()
    expect(dialog.locator("dd").last).to_have_text(first)
    page.go_back()
    expect(dialog).to_have_count(0)
    assert "doc" not in visit.state()
    cards(page).first.click()
    with visit.answer() as reply:
        dialog.get_by_role("link", name="More like this").click()
    expect(dialog).to_have_count(0)
    assert visit.state() == {"like": [first]}
    settled(page)
    assert shown(page)[0] in ids(reply.value)


def test_keyboard_alone(visit: Visit, queries: list[str]) -> None:
    visit.open()
    page, keys = visit.page, visit.page.keyboard
    settled(page)
    page.get_by_role("button", name="Dark colours").focus()
    keys.press("/")
    expect(box(page)).to_be_focused()
    with visit.answer():
        keys.type(queries[0])
        keys.press("Enter")
    settled(page)
    keys.press("ArrowDown")
    every = shown(page)

    def at() -> int:
        return every.index(page.evaluate("document.activeElement.dataset.open"))

    row = page.evaluate("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    assert row > 1
    assert at() == 0
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowDown", 1 + row),
        ("ArrowLeft", row),
        ("ArrowUp", 0),
        ("ArrowRight", 1),
    ):
        keys.press(key)
        assert at() == place
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    keys.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".grid a").first).to_be_visible()
    keys.press("Escape")
    expect(dialog).to_have_count(0)
    page.wait_for_url(lambda url: "doc=" not in url)
    assert at() == 1
    keys.press("ArrowLeft")
    keys.press("ArrowUp")
    expect(box(page)).to_be_focused()


def test_a_failing_server_is_told_and_tried_again(new_visit: Callable[..., Visit], queries: list[str]) -> None:
    visit = new_visit(quiet=False)
    visit.start()
    page, alert = visit.page, visit.page.locator("#results [role=alert]")
    failing: list[Callable[[Route], None]] = [
        lambda route: route.fulfill(
            status=500, json={"error": {"type": "internal", "message": "broke", "field": None}}
        ),
        lambda route: route.fulfill(status=500, body="<h1>not ours</h1>"),
        lambda route: route.abort("connectionrefused"),
    ]
    for turn, (fail, told) in enumerate(zip(failing, ("broke", "status 500", "does not answer"), strict=True)):
        page.route("**/search", fail)
        box(page).fill(queries[turn])
        box(page).press("Enter")
        expect(alert).to_contain_text(told)
        assert cards(page).count() == 0
        page.unroute("**/search")
        with visit.answer() as reply:
            alert.get_by_role("button", name="Try again").click()
        settled(page)
        assert shown(page)[:24] == ids(reply.value)
    assert all("Failed to load resource" in one for one in visit.said)

    page.route(
        "**/search",
        lambda route: route.fulfill(
            status=422, json={"error": {"type": "invalid", "message": "<i>no</i> field", "field": "where"}}
        ),
    )
    box(page).fill(queries[3])
    box(page).press("Enter")
    expect(alert).to_contain_text("<i>no</i> field")
    expect(alert.get_by_role("button")).to_have_count(0)


def test_a_busy_server_is_asked_again_when_it_said(new_visit: Callable[..., Visit], queries: list[str]) -> None:
    visit = new_visit(quiet=False)
    visit.start()
    page, left = visit.page, [429, 503]

    def busy(route: Route) -> None:
        if not left:
            route.continue_()
            return
        route.fulfill(
            status=left.pop(0),
            headers={"Retry-After": "2"},
            json={"error": {"type": "x", "message": "full", "field": None}},
        )

    page.route("**/search", busy)
    box(page).fill(queries[0])
    box(page).press("Enter")
    expect(page.locator("#results [role=alert]")).to_contain_text("Trying again in 2 s")
    assert left == [503]
    cards(page).first.wait_for()  # after two waits, nobody pressed anything
    assert left == []


def test_a_page_that_starts_without_a_server_recovers(new_visit: Callable[..., Visit]) -> None:
    visit = new_visit(quiet=False)
    visit.page.route("**/models", lambda route: route.abort("connectionrefused"))
    visit.open("?q=hat")
    expect(visit.page.get_by_role("alert").last).to_contain_text("does not answer")
    visit.page.unroute("**/models")
    visit.page.get_by_role("button", name="Try again").click()
    cards(visit.page).first.wait_for()


def test_more_that_fails_keeps_what_is_there(new_visit: Callable[..., Visit], queries: list[str]) -> None:
    visit = new_visit(quiet=False)
    visit.start()
    page = visit.page

    def first_page_only(route: Route) -> None:
        if json.loads(route.request.post_data or "")["offset"]:
            route.fulfill(status=500, json={"error": {"type": "internal", "message": "broke", "field": None}})
        else:
            route.continue_()

    page.route("**/search", first_page_only)
    visit.search(queries[0])
    page.get_by_role("button", name="Show more").or_(page.locator(".more .trouble")).first.scroll_into_view_if_needed()
    expect(page.locator(".more .trouble")).to_contain_text("broke")
    assert len(shown(page)) == 24
    page.unroute("**/search")
    page.locator(".more").get_by_role("button", name="Try again").click()
    expect(cards(page).nth(47)).to_be_attached()


def test_a_key_is_asked_for_and_sent_with_everything(
    folder: Path,
    new_visit: Callable[..., Visit],
    queries: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENGCL_API_KEYS", "a key of enough letters".replace(" ", "-"))
    with page_shop(folder, None, ApiKeys.load()) as locked:
        visit = new_visit(quiet=False, url=locked.url)
        visit.open(f"?q={queries[0]}")
        page = visit.page
        page.get_by_label("It is kept until you close this tab.").fill("a-wrong-one-of-enough-letters")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#key")).to_have_value("")
        page.locator("#key").fill("a-key-of-enough-letters")
        page.get_by_role("button", name="Continue").click()
        cards(page).first.wait_for()
        expect(page.locator(".shot.there").first).to_be_visible()
        assert page.locator(".shot.there img").first.evaluate("image => image.src").startswith("blob:")
        assert not any("enough" in request.url for request in visit.requests)
        visit.page.context.close()


def test_what_comes_from_data_is_text(visit: Visit) -> None:
    """A hostile title in grid, detail, filters and title of the page; a hostile colour through the filter language."""
    visit.open("?" + urlencode({"q": HOSTILE, "minus": "<b>"}))
    page = visit.page
    cards(page).first.wait_for()
    choice = page.locator("#choices-base_colour").get_by_label(HOSTILE, exact=True)
    with visit.answer() as reply:
        choice.check()
    settled(page)
    (hit,) = reply.value.json()["hits"]
    assert hit["fields"]["title"] == HOSTILE
    assert HOSTILE in cards(page).first.inner_text()
    cards(page).first.click()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(page.get_by_role("dialog").locator(".grid a").first).to_be_visible()
    page.reload()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(HOSTILE)
    assert page.title() == f"{HOSTILE} · Search"
    assert page.locator("img[src='x']").count() == 0
    assert page.locator("main b").count() == 0


ADDRESSES = ["", "?q=QUERY&minus=red&plus=blue&f.price=6..80", "?q=QUERY&view=compare", "?q=QUERY&doc=DOC"]


def ready(visit: Visit, address: str, server: Running, query: str) -> None:
    found = server.post("/search", {"query": {"text": query}, "k": 1}).json()["hits"][0]["doc_id"]
    visit.open(address.replace("QUERY", query).replace("DOC", found))
    selector = "dialog .grid a" if "doc" in address else ".idea .shot" if not address else "#results a"
    visit.page.locator(selector).first.wait_for()
    settled(visit.page)


CONTRASTS = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const paint = canvas.getContext("2d", { willReadFrequently: true });
  const pixel = (colours) => {
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => rgb.map(one => linear(one / 255))
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(one => one.nodeType === 3).map(one => one.data.trim()).join("");
    if (!text || !element.checkVisibility({ opacityProperty: true }) || element.closest(".hidden")) continue;
    const behind = [];
    for (let up = element; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
    const [back, fore] = [pixel(behind), pixel([...behind, getComputedStyle(element).color])].map(luminance);
    const ratio = (Math.max(back, fore) + 0.05) / (Math.min(back, fore) + 0.05);
    found.push([`${element.tagName}.${element.className} ${text.slice(0, 20)}`, ratio]);
  }
  return found;
}"""


ROLES = {
    "button",
    "link",
    "textbox",
    "searchbox",
    "combobox",
    "checkbox",
    "radio",
    "slider",
    "spinbutton",
    "switch",
    "dialog",
}


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", PHONE), ("dark", {"width": 2200, "height": 900})], ids=["phone", "wide"]
)
def test_names_contrast_and_width_on_every_view(
    new_visit: Callable[..., Visit], server: Running, queries: list[str], scheme: str, viewport: dict[str, int]
) -> None:
    visit = new_visit(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = visit.page
    for address in ADDRESSES:
        ready(visit, address, server, queries[0])
        nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ROLES]
        assert len(controls) > 5
        assert [node["role"] for node in controls if not node.get("name", {}).get("value", "").strip()] == []
        found = page.evaluate(CONTRASTS)
        assert len(found) > 5
        assert [(what, round(ratio, 2)) for what, ratio in found if ratio < 4.5] == []
        for element in ("document.documentElement", "document.querySelector('dialog[open]') ?? document.body"):
            assert page.evaluate(f"() => {{ const one = {element}; return one.scrollWidth - one.clientWidth; }}") <= 0
    assert page.evaluate("document.getAnimations().length") == 0


def test_filters_on_a_phone_are_in_a_dialog(new_visit: Callable[..., Visit], queries: list[str]) -> None:
    visit = new_visit(viewport=PHONE)
    visit.open(f"?q={queries[0]}&f.price=6..80")
    page = visit.page
    page.get_by_role("button", name="Filters (1)").click()
    with visit.answer() as reply:
        page.get_by_role("dialog", name="Filters").get_by_role("switch").check()
    assert "`stock` = true" in asked(reply.value)["where"]
    page.get_by_role("button", name="Close filters").click()
    expect(page.get_by_role("button", name="Filters (2)")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_chosen(new_visit: Callable[..., Visit], scheme: str) -> None:
    visit = new_visit(color_scheme=scheme)
    visit.open()
    button = visit.page.get_by_role("button", name="Dark colours")
    expect(button).to_have_attribute("aria-pressed", str(scheme == "dark").lower())
    before = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    button.click()
    visit.page.reload()
    expect(button).to_have_attribute("aria-pressed", str(scheme == "light").lower())
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_no_inline_code_and_a_policy_against_it(visit: Visit, server: Running) -> None:
    """The policy forbids inline code, styles and other hosts; the page has none."""
    reply = server.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|https?:", reply.text) == []
    visit.start()
