"""The page that a picture stands on: paper, letters, title and attribution."""

import io

from PIL import Image, ImageDraw, ImageFont

from geobacter_core.embeddings.table import EmbeddingTable

Rgb = tuple[int, int, int]

ATTRIBUTION = "© OpenStreetMap contributors"

PAPER: Rgb = (252, 251, 248)
INK: Rgb = (24, 28, 36)
MUTED: Rgb = (100, 107, 120)
FAINT: Rgb = (222, 220, 214)
RIGHT: Rgb = (13, 128, 112)
WRONG: Rgb = (206, 66, 43)
TRAIN: Rgb = (48, 105, 152)
TEST: Rgb = (214, 110, 28)

DOT = "  ·  "
MARGIN = 44
TITLE_PX, SUBTITLE_PX, NOTE_PX, CAPTION_PX = 46, 25, 22, 20


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG without any metadata, so that the same pixels are the same bytes."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Aileron, which Pillow carries, so that every machine sets the same letters."""
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType. Install one of its binary wheels.")
    return font


def write(
    image: Image.Image,
    at: tuple[float, float],
    text: str,
    size_px: int,
    colour: Rgb = INK,
    anchor: str = "la",
) -> None:
    """Write one line of text at (x, y), which is its corner or edge that `anchor` names as Pillow does."""
    # The font has Latin-1's main letters and no others.
    printable = text.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(image).text(at, printable, font=load_font(size_px), fill=colour, anchor=anchor)


def _wrapped(text: str, size_px: int, width_px: int) -> list[str]:
    font = load_font(size_px)
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def paragraph(image: Image.Image, x: int, y: int, width_px: int, text: str, size_px: int, colour: Rgb) -> int:
    """Write wrapped text from (x, y) downwards; returns where it ends."""
    for line in _wrapped(text, size_px, width_px):
        write(image, (x, y), line, size_px, colour)
        y += round(size_px * 1.4)
    return y


def compose_page(content: Image.Image, title: str, subtitle: str, note: str) -> Image.Image:
    """A picture under its title, above its note and the attribution."""
    width = max(content.width, 860) + 2 * MARGIN
    n_subtitle_lines = len(_wrapped(subtitle, SUBTITLE_PX, width - 2 * MARGIN))
    head = MARGIN + TITLE_PX + 16 + round(n_subtitle_lines * SUBTITLE_PX * 1.4) + 24
    n_lines = len(_wrapped(note, NOTE_PX, width - 2 * MARGIN))
    foot = 26 + round(n_lines * NOTE_PX * 1.4) + 12 + CAPTION_PX + MARGIN
    page = Image.new("RGB", (width, head + content.height + foot), PAPER)
    write(page, (MARGIN, MARGIN), title, TITLE_PX)
    paragraph(page, MARGIN, MARGIN + TITLE_PX + 16, width - 2 * MARGIN, subtitle, SUBTITLE_PX, MUTED)
    page.paste(content, ((width - content.width) // 2, head))
    y = paragraph(page, MARGIN, head + content.height + 26, width - 2 * MARGIN, note, NOTE_PX, MUTED)
    write(page, (width - MARGIN, y + 12), ATTRIBUTION, CAPTION_PX, MUTED, "ra")
    return page


def region_title(name: str) -> str:
    """The region's name as a title."""
    return name.replace("_", " ").replace("-", " ").title()


def table_subtitle(table: EmbeddingTable) -> str:
    """What a picture of a table says below its title: cells, encoder, style, date."""
    found = table.metadata
    date = str(found.get("osm_timestamp", ""))[:10]
    names = f"encoder {found.get('encoder', '?')}", f"style {found.get('style', '?')}"
    return DOT.join((f"{len(table):,} cells", *names, f"map of {date}"))


def length_text(metres: float) -> str:
    """A length on the ground as people write it."""
    if metres < 995:
        return f"{metres:.0f} m"
    return f"{metres / 1000:.1f} km" if metres < 9950 else f"{metres / 1000:,.0f} km"


def with_frame(tile: Image.Image, colour: Rgb, width_px: int) -> Image.Image:
    """The picture in a frame, which makes it larger."""
    framed = Image.new("RGB", (tile.width + 2 * width_px, tile.height + 2 * width_px), colour)
    framed.paste(tile, (width_px, width_px))
    return framed
