"""The pages of the RPCs and messages, from the comments of the proto files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from service.error_catalog import ERRORS
from tidemark_docs import error_pages
from tidemark_docs.markdown import code, paragraphs, prose, table, target

PROTOS: Final = Path(__file__).parents[3] / "protos"
# Numbers of fields in descriptor.proto, of which the paths of comments consist.
MESSAGE, ENUM, SERVICE = 4, 5, 6
MEMBER: Final = 2
"""Fields of a message, values of an enum, methods of a service."""
INDEX: Final = """\
# RPCs and messages

The contract is in `protos/tidemark/v1`. Servers answer reflection, so `grpcurl` needs no files.

| service | methods |
| --- | --- |
"""


@dataclass(frozen=True)
class _File:
    """A proto file and its comments by path."""

    descriptor: FileDescriptorProto
    comments: Mapping[tuple[int, ...], str]

    def comment(self, *path: int) -> str:
        """The comment before something."""
        return self.comments.get(path, "")


def pages() -> dict[str, str]:
    """A page for each service, and ``reference/api/index.md`` with the list of them."""
    contract = [_File(file, _comments(file)) for file in descriptors() if file.service]
    index = INDEX
    result = {}
    for file in contract:
        service = file.descriptor.service[0]
        page = service.name.removesuffix("Service").lower()
        links = ", ".join(f"[{code(method.name)}](#rpc-{method.name.lower()})" for method in service.method)
        index += f"| [{service.name}]({page}.md) | {links} |\n"
        result[f"reference/api/{page}.md"] = _page(file)
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *(Path(path).stem for path in result), "```"])
    return {"reference/api/index.md": f"{index}\n{toctree}\n"} | result


def descriptors() -> Sequence[FileDescriptorProto]:
    """The files of the contract, compiled with their comments."""
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "tidemark").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "contract.binpb"
        includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        options = ["--include_source_info", f"--descriptor_set_out={output}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *options, *sources]
        subprocess.run(command, check=True)  # noqa: S603  # the compiler, with files of the project
        return FileDescriptorSet.FromString(output.read_bytes()).file


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(location.path): "\n".join(line.removeprefix(" ") for line in location.leading_comments.splitlines())
        for location in file.source_code_info.location
        if location.leading_comments
    }


def _page(file: _File) -> str:
    service = file.descriptor.service[0]
    parts = [f"# {service.name}\n", _with_reasons(file.comment(SERVICE, 0)), "## Methods\n"]
    for i, method in enumerate(service.method):
        takes, returns = ("stream " * method.client_streaming, "stream " * method.server_streaming)
        signature = f"{takes}{_link(method.input_type)} → {returns}{_link(method.output_type)}"
        parts += [target(f"rpc-{method.name.lower()}", f"### {code(method.name)}"), f"{signature}\n"]
        parts.append(paragraphs(file.comment(SERVICE, 0, MEMBER, i)))
    parts.append("## Messages\n")
    parts += [_message(file, i, message) for i, message in enumerate(file.descriptor.message_type)]
    parts += [_enum(file, i, enum) for i, enum in enumerate(file.descriptor.enum_type)]
    return "\n".join(parts)


def _with_reasons(comment: str) -> str:
    """The comment of a service, whose indented lists of reasons become tables with links."""
    parts = []
    for part in comment.split("\n\n"):
        if not part.startswith("  "):
            parts.append(paragraphs(part))
        elif all(line.split()[0] in ERRORS for line in part.splitlines()):
            lines = [line.split(maxsplit=1) for line in part.splitlines()]
            is_list = any(words[1].split()[0] in ERRORS for words in lines)
            names = ", ".join(error_pages.link(name, "../errors/") for name in part.split()) if is_list else ""
            rows = [[error_pages.link(name, "../errors/"), prose(meaning)] for name, meaning in lines]
            parts.append(f"{names}.\n" if is_list else table(["reason", "when"], rows))
        else:
            rows = [line.split(maxsplit=2) for line in part.splitlines() if line.split()[1] in ERRORS]
            linked = [[code(status), error_pages.link(name, "../errors/"), prose(when)] for status, name, when in rows]
            parts.append(table(["code", "reason", "when"], linked))
    return "\n".join(parts)


def _message(file: _File, at: int, message: DescriptorProto) -> str:
    heading = target(f"message-{message.name.lower()}", f"### {code(message.name)}")
    text = paragraphs(file.comment(MESSAGE, at))
    rows = [
        [code(field.name), str(field.number), _type(field), _meaning(file, at, i, message)]
        for i, field in enumerate(message.field)
    ]
    fields = table(["field", "number", "type", "meaning"], rows) if rows else "It has no fields.\n"
    return f"{heading}\n{text}\n{fields}"


def _meaning(file: _File, message: int, at: int, descriptor: DescriptorProto) -> str:
    field = descriptor.field[at]
    meaning = prose(file.comment(MESSAGE, message, MEMBER, at))
    is_choice = field.HasField("oneof_index") and not field.proto3_optional
    return (
        f"{meaning} At most one field of {code(descriptor.oneof_decl[field.oneof_index].name)} is set."
        if is_choice
        else meaning
    )


def _enum(file: _File, at: int, enum: EnumDescriptorProto) -> str:
    heading = target(f"message-{enum.name.lower()}", f"### {code(enum.name)}")
    rows = [
        [code(value.name), str(value.number), prose(file.comment(ENUM, at, MEMBER, i))]
        for i, value in enumerate(enum.value)
    ]
    return f"{heading}\n{paragraphs(file.comment(ENUM, at))}\n{table(['value', 'number', 'meaning'], rows)}"


def _type(field: FieldDescriptorProto) -> str:
    name = _link(field.type_name) if field.type_name else code(FieldDescriptorProto.Type.Name(field.type)[5:].lower())
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str) -> str:
    """The name of a message or enum, with a link if it belongs to the contract."""
    package, _, name = type_name.lstrip(".").rpartition(".")
    return f"[{code(name)}](#message-{name.lower()})" if package.startswith("tidemark") else code(f"{package}.{name}")
