"""Reading XML that anybody may have made: no entities, bounded depth and number of elements, nothing fetched."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from graphs.errors import InputError

MOST_ELEMENTS = 200_000
"""Elements of a text that are read at most; ``nvidia-smi -q -x`` has some 400 a GPU."""

_MOST_DEPTH = 200


def parse_xml(data: bytes, where: str) -> ElementTree.Element:
    """The root of an XML text.

    A document type may be named, as these outputs do; what it would define is refused, and it is not looked for.

    Args:
        data: The text.
        where: What it is called in messages.

    Raises:
        InputError: It is no XML, defines entities, or is larger or more deeply nested than such outputs are.
    """
    builder = ElementTree.TreeBuilder()
    open_elements = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal open_elements, elements
        open_elements += 1
        elements += 1
        if elements > MOST_ELEMENTS or open_elements > _MOST_DEPTH:
            raise InputError(
                f"{where} has more than {MOST_ELEMENTS:,} elements, or {_MOST_DEPTH} in each other; it is not what "
                "nvidia-smi or lstopo write"
            )
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal open_elements
        open_elements -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise InputError(f"{where} defines XML entities, which are not read; save the program's own output")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        what = expat.errors.messages.get(error.code, "it cannot be parsed")
        raise InputError(f"{where} is not XML: {what} at line {error.lineno}; save the output again") from None
    except (LookupError, ValueError) as error:  # an encoding that nobody knows
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is not XML: {error}; save the output again") from None
