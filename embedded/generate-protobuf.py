#!/usr/bin/env python3
"""Makes protobuf-1.36.json.gz: field numbers, names and types of Kubernetes' messages.

usage: generate-protobuf.py DIRECTORY... >OUT

Each DIRECTORY holds packages with upstream's `generated.proto` (names, numbers and
types), `types.go` (JSON names, which fields are inlined and which are pointers) and
`register.go` (the group a package belongs to). Only those facts go into the table.
A field is a number, a JSON name (empty if inlined), a type and a shape: o one, always
written; p one, written if set; r several; m a map with text as keys. Fields stand in the
order in which upstream declares them.
"""

import gzip
import json
import pathlib
import re
import sys

SCALARS = {
    "string": "s", "bool": "b", "bytes": "y", "double": "d", "int32": "i", "int64": "i",
    "uint32": "i", "uint64": "i",
}


def go_fields(text):
    """(struct, number) -> JSON name ("" for an inlined field) and whether it is a pointer."""
    out = {}
    struct = None
    for line in text.splitlines():
        head = re.match(r"type (\w+) struct \{", line)
        if head:
            struct = head[1]
        tags = re.search(r'json:"([^",]*)(,[^"]*)?".*? protobuf:"\w+,(\d+),', line)
        if struct and tags:
            typ = line.split("`")[0].split()[-1]
            out[struct, tags[3]] = (tags[1], typ.startswith("*"))
    return out


def messages(text, names):
    package = re.search(r"^package ([\w.]+);", text, re.M)[1]
    for match in re.finditer(r"^message (\w+) \{\n(.*?)^\}", text, re.M | re.S):
        fields = []
        for line in match[2].splitlines():
            found = re.match(r"\s+(optional|repeated|required)?\s*(map<string, ?([\w.]+)>|[\w.]+) (\w+) = (\d+);", line)
            if not found:
                continue
            label, kind, mapped, name, number = found.groups()
            kind = mapped or kind
            if kind not in SCALARS:
                kind = kind.lstrip(".")
                if "." not in kind:
                    kind = f"{package}.{kind}"
            shown, pointer = names.get((match[1], number), (name, False))
            one = "p" if pointer else "o"
            shape = "m" if mapped else "r" if label == "repeated" else one
            fields.append([int(number), shown, SCALARS.get(kind, kind), shape])
        yield f"{package}.{match[1]}", fields


def main():
    table, groups = {}, {}
    for root in sys.argv[1:]:
        for proto in sorted(pathlib.Path(root).rglob("generated.proto")):
            folder = proto.parent
            names = {}
            for source in sorted(folder.glob("*.go")):
                names.update(go_fields(source.read_text()))
            text = proto.read_text()
            package = re.search(r"^package ([\w.]+);", text, re.M)[1]
            register = folder / "register.go"
            if register.exists():
                group = re.search(r'GroupName\s*=\s*"([^"]*)"', register.read_text())
                if group:
                    groups[package] = group[1]
            table.update(messages(text, names))
    out = json.dumps({"groups": groups, "messages": table}, separators=(",", ":"), sort_keys=True)
    sys.stdout.buffer.write(gzip.compress(out.encode(), 9, mtime=0))


main()
