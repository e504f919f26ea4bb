"""What a request may say: names in every spelling, few and small fields, and no parameter that is not declared."""

from __future__ import annotations

import email.errors
import email.header
import email.message
import email.utils
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, cast, get_origin

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

MOST_FILES = 1000  # of a form
MOST_FIELDS = 50  # of a form, besides files: more than any route has, so that unknown ones can be named
LARGEST_FIELD = 16 << 10  # bytes
IN_MEMORY = 64 << 10  # bytes of a file; more of it go to the disk
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=")


class StrictRoute(APIRoute):
    """A route that refuses (422) what it does not declare: query parameters and form fields, by name.

    What a route declares is said by its signature alone, as FastAPI reads it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What responds to a request: as FastAPI's, after the check."""
        handle = super().get_route_handler()
        declared = list(_with_dependencies(self.dependant))
        queried, sent = (
            {
                field.alias: get_origin(field.field_info.annotation) is list
                for one in declared
                for field in getattr(one, kind)
            }
            for kind in ("query_params", "body_params")
        )

        async def strict(request: Request) -> Response:
            _refuse([name for name, _ in request.query_params.multi_items()], queried, "parameter")
            if sent:
                form = await _read_form(request)
                try:
                    _refuse([name for name, _ in form.multi_items()], sent, "field")
                    return await handle(request)
                finally:
                    await form.close()
            return await handle(request)

        return strict


def open_to_head(app: FastAPI) -> None:
    """Answer HEAD wherever GET is answered; the description names GET alone."""
    for route in list(app.router.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.router.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], include_in_schema=False,
                response_model=route.response_model, response_class=route.response_class,
            )  # fmt: skip


def _with_dependencies(declared: Dependant) -> Iterator[Dependant]:
    yield declared
    for further in declared.dependencies:
        yield from _with_dependencies(further)


def _refuse(names: list[str], declared: dict[str, bool], kind: str) -> None:
    """Refuse names that are not declared, and several of what is declared as one."""
    known = f"known: {', '.join(sorted(declared))}" if declared else "there are none here"
    for name, count in Counter(names).items():
        if name not in declared:
            raise HTTPException(422, f"{_shown(name)}: is no {kind} of this route; {known}")
        if count > 1 and not declared[name]:
            raise HTTPException(422, f"{_shown(name)}: is given {count} times; give it once")


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "_" for char in name[:100])


async def _read_form(request: Request) -> FormData:
    """The form of a request, within limits; FastAPI takes what is read already."""
    limits = {"max_fields": MOST_FIELDS, "max_part_size": LARGEST_FIELD}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if _is_frame(kind):
            form = FormData([("file", await _read_file(request))])
        elif kind == "multipart/form-data":
            form = await _Parser(request.headers, request.stream(), max_files=MOST_FILES, **limits).parse()
        elif kind == "application/x-www-form-urlencoded":
            form = await _UrlencodedParser(request.headers, request.stream(), **limits).parse()
        else:
            return await request.form()
        request._form = form  # noqa: SLF001  (where Starlette looks for it)
        return form
    except MultiPartException as problem:
        raise HTTPException(400, problem.message) from problem
    except ValueError as problem:
        raise HTTPException(400, "the body is no form that can be read") from problem
    except ClientDisconnect as problem:
        raise HTTPException(400, "the request broke off") from problem


def _is_frame(kind: str) -> bool:
    """Whether a body of that type is a file itself, and no form."""
    return kind.startswith(("image/", "video/")) or kind == "application/dicom"


async def _read_file(request: Request) -> UploadFile:
    """A body that is a file, under the name that Content-Disposition gives it."""
    file: tempfile.SpooledTemporaryFile[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  (the form closes it)
    upload = UploadFile(cast(BinaryIO, file), filename=_file_name(request.headers.get("content-disposition", "")))
    try:
        async for part in request.stream():
            await upload.write(part)
        await upload.seek(0)
    except BaseException:
        await upload.close()
        raise
    return upload


def _file_name(disposition: str) -> str:
    """What ``Content-Disposition`` says that a body is called."""
    message = email.message.Message()
    message["content-disposition"] = disposition
    extended = _extended_name(disposition.encode("latin-1"))
    name = message.get_param("filename", "", "content-disposition") if extended is None else extended
    return _without_encoded_words(str(name)) or "frame"


class _Parser(MultiPartParser):
    """Starlette's, which keeps less in memory, and knows file names by RFC 5987 and RFC 2047 too."""

    spool_max_size = IN_MEMORY

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > self.max_part_size:
            raise _too_large(part.field_name)
        super().on_part_data(data, start, end)

    def on_headers_finished(self) -> None:
        part = self._current_part
        name = _extended_name(part.content_disposition or b"")
        if name is not None:
            part.content_disposition = (part.content_disposition or b"") + b'; filename="x"'
        super().on_headers_finished()
        if part.file is not None:
            part.file.filename = _without_encoded_words(part.file.filename or "") if name is None else name


class _UrlencodedParser(FormParser):
    """Starlette's, which names a field that is too large."""

    def on_field_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_field_size + end - start > self.max_part_size:
            raise _too_large(self._field_name.decode("latin-1"))
        super().on_field_data(data, start, end)


def _too_large(name: str) -> MultiPartException:
    return MultiPartException(
        f"{_shown(name)}: is larger than {LARGEST_FIELD >> 10} KiB, the most of a field; send a file with its filename"
    )


def _extended_name(disposition: bytes) -> str | None:
    """What ``filename*`` (RFC 5987) says, which goes before ``filename``; None where there is none that is whole."""
    if not re.search(rb"(?i);\s*filename\*", disposition):
        return None
    message = email.message.Message()
    message["content-disposition"] = disposition.decode("latin-1").replace("\r", " ").replace("\n", " ")
    with suppress(LookupError, ValueError):
        for key, value in message.get_params([], "content-disposition"):
            if key.lower() == "filename" and isinstance(value, tuple):
                return str(email.utils.collapse_rfc2231_value(value))
    return None


def _without_encoded_words(name: str) -> str:
    """The name with words as ``=?UTF-8?B?…?=`` (RFC 2047) decoded, where all of them can be."""
    joined = re.sub(r"(?<=\?=)\s+(?==\?)", "", name)
    with suppress(LookupError, ValueError, email.errors.HeaderParseError):
        return _ENCODED_WORD.sub(
            lambda word: str(email.header.make_header(email.header.decode_header(word[0]))), joined
        )
    return name
