"""Files that nobody means well with, and odd ones that are right: what each is, and the statuses that suit it."""
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from imgclf_nb.example import draw_example


def save(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width=200, height=200):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def chunk(name, data, wrong=0, length=None):
    checksum = (zlib.crc32(name + data) + wrong) % 2**32
    return struct.pack(">I", len(data) if length is None else length) + name + data + struct.pack(">I", checksum)


def png(width, height, rows=None, *extra, depth=8, colour=0, wrong=0, method=0):
    """A PNG of any size in its header; its rows are black unless given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = bytes((1 + (width * channels * depth + 7) // 8) * height) if rows is None else rows
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, method, 0, 0), wrong)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def tiff(width, height, *tags, data=b"\0" * 64, next_directory=0, count=None, sides=4):
    """A grey TIFF; `tags` are (number, type, count, value) and come on top of the needed ones."""
    needed = [(256, sides, 1, width), (257, sides, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
              (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries = sorted({tag[0]: tag for tag in [*needed, *tags]}.values())
    packed = b"".join(struct.pack("<HHI", *tag[:3]) + (struct.pack("<f", tag[3]) if isinstance(tag[3], float) else
                                                       struct.pack("<I", tag[3])) for tag in entries)
    return (b"II*\0" + struct.pack("<I", 8 + len(data)) + data
            + struct.pack("<H", len(entries) if count is None else count) + packed + struct.pack("<I", next_directory))


def gif(width, height, frame=None, comment=b""):
    frame_width, frame_height = frame or (width, height)
    return (b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + comment
            + b",\0\0\0\0" + struct.pack("<HH", frame_width, frame_height) + b"\0\x02\x02\x44\x01\0;")


def bmp(width, height, bits=24, compression=0, pixels=b"\0" * 64, offset=54):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, offset) + header + pixels


def webp(width, height):
    """A canvas of that size around a picture of 8 x 8."""
    inside = save(draw_example(0, size_px=8), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(inside)) + b"WEBP" + canvas + inside


def resize_jpeg(width, height):
    """A JPEG whose header lies about its size."""
    content = bytearray(save(noise(), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5:at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def stuff_jpeg(segment, count=1, jpeg=None):
    """A good JPEG with further segments."""
    jpeg = jpeg or save(draw_example(1), "JPEG")
    return jpeg[:2] + segment * count + jpeg[2:]


def app1(data):
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def many_scans(count, side_px=4000):
    """A progressive JPEG that repeats its last scan: each is a pass over all pixels for a few bytes."""
    content = save(Image.new("L", (side_px, side_px), 90), "JPEG", progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda"):-2] * count + b"\xff\xd9"


def frames(count, kind, **options):
    pictures = [Image.new("RGB", (8, 8), (n % 251, n % 7, 0)) for n in range(count)]
    return save(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)


def archive():
    with zipfile.ZipFile(file := io.BytesIO(), "w") as opened:
        opened.writestr("word/document.xml", "hello")
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(draw_example(1), "JPEG", exif=exif)


def transparent():
    picture = draw_example(1).quantize(16)
    return save(picture, "PNG", transparency=bytes(range(0, 256, 16)))


def cut(kind, share, **options):
    content = save(noise(), kind, **options)
    return content[:round(share * len(content))]


def box(brand):
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(300)


_BOMB = zlib.compress(bytes(80_000_000), 9)
_LONG = 2_000_000   # rows of a picture of one column

BAD = {  # name -> statuses, and what makes the file
    "empty": (400, lambda: b""),
    "one byte": (400, lambda: b"\xff"),
    "text": (400, lambda: b"buy milk\n" * 20),
    "JSON": (400, lambda: b'{"image": "cat.jpg"}'),
    "random": (400, lambda: np.random.default_rng(1).bytes(100_000)),
    "zeros": (400, lambda: bytes(1_000_000)),
    "a picture in base64": (400, lambda: b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAA"),
    "zip": (415, archive),
    "HTML": (415, lambda: b"<!DOCTYPE html><html><script>alert(1)</script>"),
    "SVG": (415, lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    "SVG with entities": (415, lambda: b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg><text>&b;</text></svg>'),
    "HEIC": (415, lambda: box(b"heic")),
    "AVIF": (415, lambda: save(draw_example(0), "AVIF")),
    "MP4": (415, lambda: box(b"isom")),
    "EPS": (415, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"),
    "PDF": (415, lambda: save(draw_example(0), "PDF")),
    "ICO": (415, lambda: save(draw_example(0), "ICO")),
    "PSD": (415, lambda: b"8BPS\0\1" + bytes(40)),
    "JPEG 2000": ((400, 415), lambda: save(draw_example(0), "JPEG2000")),
    "PPM": ((400, 415), lambda: save(draw_example(0), "PPM")),
    "TGA": ((400, 415), lambda: save(draw_example(0), "TGA")),
    "XBM": ((400, 415), lambda: b"#define x_width 9999\n#define x_height 9999\nstatic char x_bits[] = {0};"),
    **{f"{kind} cut at {share:.0%}": (400, lambda kind=kind, share=share: cut(kind, share))
       for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP") for share in (0.001, 0.1, 0.6, 0.97)},
    **{f"only the magic of {kind}": (400, lambda head=head: head + np.random.default_rng(2).bytes(5000)) for kind, head in {
        "JPEG": b"\xff\xd8\xff\xe0", "PNG": b"\x89PNG\r\n\x1a\n", "WebP": b"RIFF\x88\x13\0\0WEBPVP8 ",
        "TIFF": b"II*\0", "BMP": b"BM"}.items()},
    "12000 x 12000 PNG": (413, lambda: png(12000, 12000)),
    "50000 x 50000 PNG": (413, lambda: png(50000, 50000, b"")),
    "24 megapixels in one column": (413, lambda: png(1, 24_000_000)),
    "4e9 pixels PNG": (413, lambda: png(65535, 65535, b"")),
    "2**31 wide PNG": ((400, 413), lambda: png(2**31 - 1, 2**31 - 1, b"")),
    "4e9 pixels GIF": (413, lambda: gif(65535, 65535)),
    "small GIF, big frame": (413, lambda: gif(1, 1, (9000, 9000))),
    "4e9 pixels TIFF": (413, lambda: tiff(65535, 65535)),
    "4e9 pixels BMP": (413, lambda: bmp(65535, 65535)),
    "65535 x 65535 JPEG": (413, lambda: resize_jpeg(65535, 65535)),
    "16383 x 16383 WebP": ((400, 413), lambda: webp(16383, 16383)),
    "lying canvas WebP": (400, lambda: webp(3000, 3000)),
    "huge canvas WebP": ((400, 413), lambda: webp(2**24, 2**24)),
    "lying size JPEG": ((200, 400), lambda: resize_jpeg(4000, 4000)),
    "lying size PNG": (400, lambda: png(4000, 4000, bytes(100))),
    "lying size BMP": (400, lambda: bmp(4000, 4000)),
    "lying offset BMP": (400, lambda: bmp(8, 8, offset=2**32 - 1)),
    "negative size BMP": ((400, 413), lambda: bmp(-8, -2**31)),
    "0 x 0 PNG": (400, lambda: png(0, 0)),
    "0 x 9 PNG": (400, lambda: png(0, 9)),
    "0 x 0 GIF": (400, lambda: gif(0, 0)),
    "0 x 0 JPEG": (400, lambda: resize_jpeg(0, 0)),
    "0 x 0 TIFF": (400, lambda: tiff(0, 0)),
    "0 x 0 BMP": (400, lambda: bmp(0, 0)),
    "wrong CRC in IHDR": (400, lambda: png(8, 8, wrong=1)),
    "wrong bytes in IDAT": ((200, 400), lambda: (content := save(noise(), "PNG"))[:5000] + b"hello" + content[5005:]),
    "PNG without IDAT": (400, lambda: png(8, 8)[:33] + chunk(b"IEND", b"")),
    "PNG chunk of 4 GB": (400, lambda: png(8, 8)[:33] + chunk(b"tEXt", b"a", length=2**32 - 1)),
    "PNG of an unknown method": ((200, 400), lambda: png(8, 8, method=7)),
    "zTXt bomb": ((200, 400), lambda: png(8, 8, None, chunk(b"zTXt", b"a\0\0" + _BOMB))),
    "iTXt bomb": ((200, 400), lambda: png(8, 8, None, chunk(b"iTXt", b"a\0\1\0\0\0" + _BOMB))),
    "90 zTXt bombs": ((200, 400), lambda: png(8, 8, None, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 90)),
    "iCCP bomb": ((200, 400), lambda: png(8, 8, None, chunk(b"iCCP", b"a\0\0" + _BOMB))),
    "deflate bomb": ((200, 400), lambda: png(8, 8, bytes(80_000_000))),
    "600,000 PNG chunks": ((200, 400), lambda: png(8, 8, None, chunk(b"prVt", b"") * 600_000)),
    "GIF of 10,000 frames": (200, lambda: frames(10_000, "GIF")),
    "GIF comment of 3,000,000 blocks": ((200, 400), lambda: gif(8, 8, comment=b"!\xfe" + b"\1a" * 3_000_000 + b"\0")),
    "GIF comment of 3,000,000 blocks behind junk": ((200, 400), lambda: gif(8, 8, comment=b"\0!\xfe" + b"\1a" * 3_000_000 + b"\0")),
    "GIF comments of 1,000,000 blocks with junk between them": ((200, 400), lambda: gif(8, 8, comment=b"!\xfe\1a\0\0" * 1_000_000)),
    "9 MB of junk in a GIF": ((200, 400), lambda: gif(8, 8, comment=b"\0" * 9_000_000)),
    "TIFF of 4e9 tags": (400, lambda: tiff(8, 8, (270, 2, 2**32 - 1, 8))),
    "TIFF of 65535 tags": ((200, 400), lambda: tiff(8, 8, count=65535)),
    "TIFF in circles": ((200, 400), lambda: tiff(8, 8, next_directory=72)),
    "TIFF of 2,000,000 strips": ((200, 400), lambda: tiff(
        1, _LONG, (273, 4, _LONG, 8), (278, 4, 1, 1), (279, 4, _LONG, 8), data=struct.pack("<I", 8) * _LONG)),
    "TIFF of 2,000,000 strips, as bytes": ((200, 400), lambda: tiff(
        1, _LONG, (273, 1, _LONG, 8), (278, 4, 1, 1), (279, 4, _LONG, 8), data=b"\x08" * _LONG * 4)),
    "TIFF of 60,000 strips": ((200, 400), lambda: tiff(
        1, 60_000, (273, 4, 60_000, 8), (278, 4, 1, 1), (279, 4, 60_000, 8), data=struct.pack("<I", 8) * 60_000)),
    "TIFF around a JPEG of 60,000 scans": ((200, 400), lambda: (lambda jpeg: tiff(
        4000, 4000, (259, 3, 1, 7), (279, 4, 1, len(jpeg)), data=jpeg))(many_scans(60_000))),
    "TIFF of 2,000,000 unused numbers": ((200, 400), lambda: tiff(8, 8, (700, 4, _LONG, 8), data=bytes(4 * _LONG))),
    "TIFF of unknown compression": (400, lambda: tiff(8, 8, (259, 3, 1, 60000))),
    "TIFF of 255 samples": (400, lambda: tiff(8, 8, (277, 3, 1, 255))),
    "TIFF with broken deflate": (400, lambda: tiff(8, 8, (259, 3, 1, 8))),
    "TIFF of tiles without end": ((200, 400), lambda: tiff(8, 8, (322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 8))),
    "TIFF of floating width": ((200, 400), lambda: tiff(8.0, 8.0, sides=11)),
    "BigTIFF": (400, lambda: b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63)),
    "broken EXIF": ((200, 400), lambda: stuff_jpeg(app1(b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 50))),
    "huge EXIF": ((200, 400), lambda: stuff_jpeg(app1(b"Exif\0\0MM\0*" + b"\xff" * 65000), 100)),
    "EXIF in 400,000 pieces": ((200, 400), lambda: stuff_jpeg(app1(b"Exif\0\0" + b"x" * 10), 400_000)),
    **{f"EXIF in 400,000 pieces behind {name}": ((200, 400), lambda start=start: stuff_jpeg(
        start + app1(b"Exif\0\0" + b"x" * 10) * 400_000)) for name, start in {
            "junk": b"junk", "an end": b"\xff\xd9", "a restart": b"\xff\xd0", "padding": b"\xff" * 100}.items()},
    "pieces of EXIF with junk between them": ((200, 400), lambda: stuff_jpeg(app1(b"Exif\0\0" + b"x" * 10) + b"\0", 400_000)),
    "9 MB of padding": ((200, 400), lambda: stuff_jpeg(b"\xff" * 9_000_000)),
    "9 MB of junk": ((200, 400), lambda: stuff_jpeg(b"\0" * 9_000_000)),
    "2,000,000 empty segments": ((200, 400), lambda: stuff_jpeg(b"\xff\xe5\0\2", 2_000_000)),
    "segment shorter than its length": (400, lambda: b"\xff\xd8\xff\xe0\0\0" + bytes(10)),
    "60,000 scans": ((200, 400), lambda: many_scans(60_000)),
    "BMP of long run lengths": ((200, 400), lambda: bmp(4000, 4000, 8, 1, bytes(1024) + b"\1\5" * 2_000_000, 1078)),
    "BMP with a broken run": (400, lambda: bmp(4000, 4000, 8, 1, bytes(1024) + b"\0\2\xff\xff" * 10, 1078)),
    "GIF that is JavaScript": ((200, 400), lambda: b"GIF89a/*" + gif(8, 8)[8:] + b"*/=1;alert(1)"),
    "JPEG that is a zip": ((200, 400), lambda: save(draw_example(1), "JPEG") + archive()),
    "not finite TIFF": (400, lambda: save(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")),
    "over the limit of bytes": (413, lambda: save(draw_example(1), "PNG") + bytes(10_000_000)),
}

GOOD = {  # name -> what makes the file; all of them are answered
    "JPEG": lambda: save(draw_example(1), "JPEG"),
    "CMYK": lambda: save(draw_example(1).convert("CMYK"), "JPEG"),
    "grey": lambda: save(draw_example(1).convert("L"), "JPEG"),
    "16 bits": lambda: save(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"),
    "1 bit": lambda: save(draw_example(1).convert("1"), "TIFF"),
    "palette and alpha": transparent,
    "alpha": lambda: save(draw_example(1).convert("RGBA"), "WEBP"),
    "grey and alpha": lambda: save(draw_example(1).convert("LA"), "PNG"),
    "turned": turned,
    "60000 x 1": lambda: png(60000, 1),
    "1 x 60000": lambda: png(1, 60000),
    "1 x 1": lambda: png(1, 1),
    "NaN in TIFF": lambda: save(Image.fromarray(np.array([[1, np.nan], [2, np.inf]], np.float32)), "TIFF"),
    "32 bits": lambda: save(Image.fromarray(np.arange(81, dtype=np.int32).reshape(9, 9)), "TIFF"),
    "Lab TIFF": lambda: save(Image.new("LAB", (9, 9)), "TIFF"),
    "MPO": lambda: save(draw_example(1), "MPO", save_all=True, append_images=[draw_example(2)]),
    "animated WebP": lambda: frames(5, "WEBP"),
    "animated PNG": lambda: frames(5, "PNG"),
    "progressive": lambda: save(draw_example(1), "JPEG", progressive=True),
    "interlaced GIF": lambda: save(draw_example(1), "GIF", interlace=1),
    "text behind it": lambda: save(draw_example(1), "PNG") + b"hello",
    "24 megapixels": lambda: png(4900, 4900, colour=2),
    "24 megapixels with alpha": lambda: png(4900, 4900, colour=6),
    "24 megapixels of palette and alpha": lambda: png(4900, 4900, None, chunk(b"PLTE", bytes(30)), chunk(b"tRNS", b"\x80"),
                                                      colour=3),
    "24 megapixels of 16 bits": lambda: png(4900, 4900, depth=16),
    "24 megapixels of floats": lambda: save(Image.new("F", (4900, 4900), 1.5), "TIFF", compression="tiff_deflate"),
    "24 megapixels, progressive": lambda: save(Image.new("RGB", (4900, 4900), "navy"), "JPEG", progressive=True),
    "24 megapixels of BMP runs": lambda: bmp(4900, 4900, 8, 1, bytes(1024) + (b"\xff\5" * 19 + b"\x37\5\0\0") * 4900 + b"\0\1", 1078),
}
