"""XMP packets: what others wrote is not moved by a byte, and strangers' XML does no harm."""

import contextlib
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import xmp
from tools.containers import Strange

RDF = f"{{{xmp.RDF}}}"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCE = xmp.Property("Iptc4xmpExt:DigitalSourceType", "ours")
PROMPT = xmp.Property("imaged:MCP-Prompt", 'A <fox> & "friends"')
DESCRIPTION = xmp.Property("dc:description", "A fox", "alternative", polite=True)
DERIVED = xmp.Property("xmpMM:DerivedFrom", "sha256:ab", "reference")


def packet(inside: str, *, about: str = 'rdf:about=""', around: str = "{}") -> bytes:
    """Another program's; `inside` may be attributes followed by > and elements."""
    namespaces = f'xmlns:iptc="{IPTC}" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:i="{xmp.OWN}"'
    rdf = f'<rdf:RDF xmlns:rdf="{xmp.RDF}"><rdf:Description {about} {namespaces} {inside}</rdf:Description></rdf:RDF>'
    return around.format(rdf).encode()


def properties(written: bytes) -> dict[str, str]:
    """Name and text of all of them, read by another parser."""
    found = {}
    for description in ElementTree.fromstring(written).iter(f"{RDF}Description"):
        pairs = [(element.tag, "".join(element.itertext())) for element in description]
        for name, text in [*pairs, *description.items()]:
            if not name.startswith(RDF):
                assert name not in found, name
                found[name] = text
    return found


def test_a_new_packet_says_what_it_was_given() -> None:
    written = xmp.packet([SOURCE, PROMPT, DESCRIPTION, DERIVED])
    assert written.startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert written.endswith(b'<?xpacket end="w"?>')
    assert properties(written) == {
        f"{{{IPTC}}}DigitalSourceType": "ours",
        f"{{{xmp.OWN}}}MCP-Prompt": PROMPT.value,
        "{http://purl.org/dc/elements/1.1/}description": "A fox",
        "{http://ns.adobe.com/xap/1.0/mm/}DerivedFrom": "sha256:ab",
    }
    assert xmp.packet([SOURCE, PROMPT, DESCRIPTION, DERIVED]) == written


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_is_read_back_as_far_as_xml_holds_it(text: str) -> None:
    written = xmp.packet([xmp.Property("imaged:MCP-Prompt", text), SOURCE])
    assert xmp.keys(written) == {"MCP-Prompt": xmp.sayable(text)}
    assert len(xmp.sayable(text)) == len(text)
    assert properties(written)[f"{{{xmp.OWN}}}MCP-Prompt"] == xmp.sayable(text)


FOREIGN = [
    packet("><dc:creator>x</dc:creator>"),
    packet(">", around='<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/">{}</x:xmpmeta>   <?xpacket end="w"?>\0'),
    packet("><!-- </rdf:RDF> --><dc:creator><![CDATA[</rdf:RDF>]]></dc:creator>"),
    packet('dc:creator=\'/rdf:RDF> dc:format="x"\' dc:format = "a>\'b"\n>'),
    packet("><dc:creator rdf:parseType='Resource'><iptc:DigitalSourceType>not ours to cut</iptc:DigitalSourceType></dc:creator>"),
    packet('xmlns:Iptc4xmpExt="urn:else" Iptc4xmpExt:DigitalSourceType="of another namespace">'),
]


@pytest.mark.parametrize("old", FOREIGN)
def test_what_others_wrote_is_not_moved_by_a_byte(old: bytes) -> None:
    new = xmp.merged(old, [SOURCE, PROMPT])
    end = old.rindex(b"</rdf:RDF>")
    assert new.startswith(old[:end]) and new.endswith(old[end:])
    assert xmp.keys(new) == {"MCP-Prompt": PROMPT.value}
    before = properties(old.rstrip(b"\0"))
    ours = {f"{{{IPTC}}}DigitalSourceType": "ours", f"{{{xmp.OWN}}}MCP-Prompt": PROMPT.value}
    assert properties(new.rstrip(b"\0")) == before | ours


@pytest.mark.parametrize(
    ("inside", "left"),
    [
        ("><iptc:DigitalSourceType>theirs</iptc:DigitalSourceType><dc:format>x</dc:format>", "><dc:format>x</dc:format>"),
        ("><iptc:DigitalSourceType/><dc:format/>", "><dc:format/>"),
        ("><iptc:DigitalSourceType a='>' /><dc:format/>", "><dc:format/>"),
        ("dc:a='x' iptc:DigitalSourceType = '> iptc:DigitalSourceType' dc:format='x'>", "dc:a='x' dc:format='x'>"),
        ("><i:MCP-Tool>theirs</i:MCP-Tool \n><i:Else/>", ">"),
        ("i:MCP-Model='old'>", ">"),
    ],
)
def test_what_we_say_again_is_cut_out(inside: str, left: str) -> None:
    new = xmp.merged(packet(inside), [SOURCE])
    assert packet(left).partition(b"</rdf:Description>")[0].replace(b" >", b">") in new.replace(b" >", b">")
    assert properties(new)[f"{{{IPTC}}}DigitalSourceType"] == "ours" and xmp.keys(new) == {}


def test_the_same_said_twice_over_is_said_once() -> None:
    once = xmp.packet([SOURCE, PROMPT, DESCRIPTION, DERIVED])
    again = [SOURCE, PROMPT._replace(value="A bear"), DESCRIPTION._replace(value="A bear"), DERIVED]
    assert xmp.unsaid(once, again) == tuple(again)
    twice = xmp.merged(once, again)
    assert properties(twice) == properties(xmp.packet(again))


def test_who_is_polite_does_not_say_what_another_has_said() -> None:
    theirs = packet("dc:description='theirs'>")
    assert xmp.unsaid(theirs, [SOURCE, DESCRIPTION]) == (SOURCE,)
    assert xmp.unsaid(packet(">"), [SOURCE, DESCRIPTION]) == (SOURCE, DESCRIPTION)


def test_what_stands_elsewhere_is_cut_out_too() -> None:
    new = xmp.merged(packet("dc:description='theirs'>"), [SOURCE], elsewhere=[DESCRIPTION])
    assert properties(new) == {f"{{{IPTC}}}DigitalSourceType": "ours"}


@pytest.mark.parametrize("empty", ["<q:RDF xmlns:q='{0}'/>", "<q:RDF xmlns:q='{0}' />", "<RDF xmlns='{0}'></RDF>"])
def test_a_packet_that_says_nothing_is_filled(empty: str) -> None:
    assert xmp.keys(xmp.merged(empty.format(xmp.RDF).encode(), [PROMPT])) == {"MCP-Prompt": PROMPT.value}


def test_all_descriptions_are_about_the_same_thing() -> None:
    old = packet(">", about='rdf:about="uuid:&quot;&#10;&lt;1&gt;"')
    for written in (xmp.merged(old, [PROMPT]), xmp.extension(old, [PROMPT])):
        found = {one.get(f"{RDF}about") for one in ElementTree.fromstring(written).iter(f"{RDF}Description")}
        assert found == {'uuid:"\n<1>'}
    assert b"xpacket" not in xmp.extension(old, [PROMPT])


def test_our_keys_are_read_in_whatever_way_others_wrote_them_down_again() -> None:
    assert xmp.keys(packet("i:MCP-Tool='a&amp;b'><i:MCP-Size>1<![CDATA[<]]>2</i:MCP-Size>")) == {
        "MCP-Tool": "a&b",
        "MCP-Size": "1<2",
    }


def test_only_what_stands_in_a_description_is_a_property() -> None:
    typed = packet("><i:MCP-Tool>x</i:MCP-Tool>").replace(b"rdf:Description", b"i:Thing")
    assert xmp.keys(typed) == {} and b"<i:MCP-Tool>x</i:MCP-Tool>" in xmp.merged(typed, [PROMPT])


def test_an_extension_goes_by_the_digest_of_its_text() -> None:
    pointer = xmp.pointer(b"text")
    assert pointer.value == "1CB251EC0D568DE6A929B520C4AED8D1"
    assert xmp.extension_guid(xmp.packet([pointer])) == pointer.value and xmp.extension_guid(packet(">")) == ""


BAD = [
    b"",
    b"<x/>",
    b"text",
    packet(">")[:-1],
    packet(">") + b"<x/>",
    packet(">", around="<a><b>{}</b></a>"),
    packet(">", around="<a>{0}{0}</a>"),
    packet("unbound:x='1'>"),
    packet(">").decode().encode("utf-16"),
    b"<?xml version='1.0' encoding='latin-1'?>" + packet("><dc:x>é</dc:x>").decode().encode("latin-1"),
    b"<!DOCTYPE rdf>" + packet(">"),
    b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + packet("><i:MCP-Tool>&a;</i:MCP-Tool>"),
    b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + packet(">"),
    packet("><i:MCP-Tool>&a;</i:MCP-Tool>"),
    packet(">" + " " * (1 << 20)),
]


@pytest.mark.parametrize("old", BAD)
def test_what_is_not_laid_out_as_it_should_be_is_not_touched(old: bytes) -> None:
    for attempt in (xmp.keys, xmp.extension_guid):
        with pytest.raises(Strange):
            attempt(old)
    with pytest.raises(Strange):
        xmp.merged(old, [SOURCE])
    with pytest.raises(Strange):
        xmp.unsaid(old, [SOURCE])


def test_deep_nesting_and_many_attributes_take_no_time_worth_naming() -> None:
    deep = packet(">" + "<dc:a>" * 50_000 + "</dc:a>" * 50_000)
    wide = packet(" ".join(f"dc:a{number}='>'" for number in range(50_000)) + ">")
    many = packet(">" + "<i:a/>" * 100_000)
    for old in (deep, wide, many):
        assert xmp.keys(xmp.merged(old, [PROMPT])) == {"MCP-Prompt": PROMPT.value}


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([*FOREIGN, xmp.packet([SOURCE, PROMPT, DERIVED])]), st.data())
def test_no_damage_is_answered_with_anything_but_a_refusal(old: bytes, data: st.DataObject) -> None:
    damaged = bytearray(old)
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(old) - 1), st.sampled_from(b"<>/'\"&=: a\0\xff")))):
        damaged[place] = value
    with contextlib.suppress(Strange):
        new = xmp.merged(bytes(damaged), [SOURCE, PROMPT])
        assert xmp.keys(new) == {"MCP-Prompt": PROMPT.value}
