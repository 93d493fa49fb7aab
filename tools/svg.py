"""Whether an svg only draws. It is a program's food, not a picture: a browser runs what stands in it.

Rule: what could run, load something from elsewhere or change by itself is refused. Nothing is rendered here, and no
entity is expanded: what declares any is refused before it is parsed.
"""

import re
import xml.etree.ElementTree as ElementTree

from tools.pictures import BadPicture

ELEMENTS_MAX = 200_000
_REFUSED_ELEMENTS = {"script", "foreignobject", "iframe", "object", "embed", "audio", "video", "handler", "listener", "set"}
_INLINE = re.compile(r"\s*(#|data:image/(png|jpeg|webp|gif);base64,)", re.IGNORECASE)
_URL = re.compile(r"url\(\s*['\"]?\s*(?!#)[^)\s'\"]", re.IGNORECASE)


def check(data: bytes) -> None:
    """Blocking.

    Raises:
        BadPicture: names what in it is more than drawing, or that it is no XML.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"<?xml-stylesheet" in data:
        raise BadPicture("the svg declares entities or a style sheet of its own")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as exc:
        raise BadPicture(f"the svg is not XML ({exc})") from exc
    for number, element in enumerate(root.iter()):
        if number >= ELEMENTS_MAX:
            raise BadPicture(f"the svg has more than {ELEMENTS_MAX:,} elements")
        _check_element(element)


def _check_element(element: ElementTree.Element) -> None:
    name = _local(element.tag)
    if element.tag.startswith("{") and not element.tag.startswith("{http://www.w3.org/2000/svg}"):
        raise BadPicture(f"the svg contains <{name}> of another language")
    if name in _REFUSED_ELEMENTS or name.startswith("animate"):
        raise BadPicture(f"the svg contains <{name}>, which does more than draw")
    if name == "style":
        _check_style("".join(element.itertext()))
    for attribute, value in element.attrib.items():
        local = _local(attribute)
        if local.startswith("on"):
            raise BadPicture(f"the svg runs something on {local[2:]} of <{name}>")
        if local in ("ping", "srcset", "base", "background"):
            raise BadPicture(f"{local} of <{name}> in the svg points elsewhere")
        if local in ("href", "src") and not _INLINE.match(value):
            raise BadPicture(f"<{name}> of the svg points elsewhere")
        _check_style(value)


def _check_style(text: str) -> None:
    if _INLINE.match(text):
        return
    if _URL.search(text) or any(sign in text.lower() for sign in ("\\", "@", "//", "javascript:", "image-set", "src(")):
        raise BadPicture("the svg loads something from elsewhere")


def _local(name: str) -> str:
    return name.rpartition("}")[2].lower()
