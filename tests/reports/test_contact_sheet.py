import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

from PIL import Image as Pillow
from toy_records import Listed, record

from segdpo.data.checking import Finding, check_source
from segdpo.data.record import Pair
from segdpo.reports import ContactSheet

CLASSES = ("background", "cell")


class Page(HTMLParser):
    """What is on a page: tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page(records, classes=CLASSES, **options):
    sheet = ContactSheet(classes, len(records), **options)
    check = check_source(Listed(records, classes), on_record=sheet.offer)
    return Page(sheet.html("my data", check))


def test_the_page_shows_each_mask_and_needs_no_network():
    shown = page([record("a 1", pairs=((2, 1),)), record("ü", value=9)])
    pictures = [attrs for tag, attrs in shown.tags if tag == "img"]
    names = ("image", "gold", "rater0", "rater1", "rater2")
    assert [p["alt"] for p in pictures] == [f"{i}: {name}" for i in ("a 1", "ü") for name in names]
    for picture in pictures:
        head, data = picture["src"].split(",")
        assert head == "data:image/png;base64"
        assert Pillow.open(io.BytesIO(base64.b64decode(data))).size == (8, 8)
    assert not [attrs for tag, attrs in shown.tags if tag in ("script", "link") or "href" in attrs]
    assert not re.search(r"https?://", shown.text)
    assert any(attrs.get("name") == "viewport" for tag, attrs in shown.tags if tag == "meta")


def test_ids_and_names_are_text_and_nothing_else():
    nasty = dataclasses.replace(
        record("<script>x</script>", masks=2, pairs=(), gold=False),
        mask_names=("<b", "&amp;'\""),
        pairs=(Pair(0, 1),),
        group="<i>g",
    )
    shown = page([nasty])
    assert not [tag for tag, _ in shown.tags if tag in ("script", "b")]
    assert "<script>x</script>" in shown.text
    assert "<b > &amp;'\"" in shown.text


def test_pairs_are_written_out():
    pairs = tuple((a, b) for a in range(3) for b in range(3) if a != b)
    shown = page([dataclasses.replace(record(masks=3, pairs=(*pairs, (0, 1))), mask_names=("x", "y", "z"))])
    assert "x > y · x > z · y > x" in shown.text
    assert "… 1 more" in shown.text


def test_faulty_records_are_shown_beside_the_evenly_spread_ones():
    sheet = ContactSheet(CLASSES, total=10, images=2)
    for k in range(10):
        wrong = [Finding("error", "empty mask", str(k), "bad")] if k in (3, 4, 6) else []
        sheet.offer(k, record(str(k)), wrong)
    names = re.findall(r"<h3>(\d+) ", sheet.html("t", check_source(Listed([]))))
    # Every fifth, and faulty ones while there are fewer than twice as many as asked for.
    assert names == ["0", "3", "4", "5"]
