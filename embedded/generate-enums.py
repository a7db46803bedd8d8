#!/usr/bin/env python3
"""Makes enums-1.36.json.gz: which values the fields of the API may have, as OpenAPI shows them.

    embedded/generate-enums.py GO_TYPES

GO_TYPES is a directory with the types.go files of the module k8s.io/api (release-1.36) in a
directory `api`. A type marked +enum lists its constants with what is said of them. The result
holds "values" (type to pairs of a value and its description) and "fields" (definition to field
to type; "[]" before the type where the items are meant).
"""
import gzip, json, os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))


def schema_names():
    with gzip.open(os.path.join(HERE, "schema-1.36.json.gz")) as file:
        return json.load(file)


def package_files(root, path):
    folder = os.path.join(root, path)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".go") and not name.startswith("zz_") and "_test" not in name:
            yield open(os.path.join(folder, name)).read()


def enums_of(text):
    """Names of the types of a file that are enums."""
    found = re.finditer(r"((?:^//.*\n)+)^type (\w+) string", text, re.M)
    for match in found:
        if re.search(r"^//\s*\+enum\s*$", match.group(1), re.M):
            yield match.group(2)


def constants_of(text):
    """(type, value, description) of the typed string constants of a file."""
    comment = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment.append(line[2:].strip())
            continue
        match = re.match(r'(?:const\s+)?(\w+)\s+(\w+)\s*=\s*"([^"]*)"', line)
        if match:
            name, typ, value = match.groups()
            tags = [word for word in comment if word.startswith("+")]
            words = " ".join(word for word in comment if not word.startswith("+")).strip()
            if words.startswith(name):
                words = words[len(name):]
            if not any("enumExclude" in tag for tag in tags):
                yield typ, value, re.sub(r"\s+", " ", words).strip()
        comment = []


def fields_of(text):
    """(structure, field, type) of a file."""
    for match in re.finditer(r"^type (\w+) struct \{(.*?)^\}", text, re.M | re.S):
        for line in match.group(2).splitlines():
            field = re.match(r'\t\w+\s+(\S+)\s+`[^`]*?json:"([^",]+)', line)
            if field:
                yield match.group(1), field.group(2), field.group(1)


def main(root):
    schema = schema_names()
    packages = sorted({tuple(name.split(".")[1:3]) for name in schema if name.startswith("api.")})
    values, kinds = {}, {}
    for group, version in packages:
        for text in package_files(root, f"api/{group}/{version}"):
            for name in enums_of(text):
                kinds[(group, version, name)] = f"api.{group}.{version}.{name}"
    for group, version in packages:
        for text in package_files(root, f"api/{group}/{version}"):
            for typ, value, words in constants_of(text):
                name = kinds.get((group, version, typ))
                if name:
                    values.setdefault(name, {})[value] = words
    fields = {}
    for group, version in packages:
        for text in package_files(root, f"api/{group}/{version}"):
            for struct, field, typ in fields_of(text):
                many = re.match(r"(\[\]|map\[\w+\])", typ)
                base = typ[many.end():] if many else typ
                base = base.lstrip("*")
                alias, _, short = base.rpartition(".")
                home = ("core", "v1") if alias in ("v1", "corev1", "core") else (group, version)
                name = kinds.get((*home, short)) if alias in ("", "v1", "corev1", "core") else None
                definition = f"api.{group}.{version}.{struct}"
                if name in values and field in schema.get(definition, {}).get("p", {}):
                    fields.setdefault(definition, {})[field] = ("[]" if many else "") + name
    used = {name.lstrip("[]") for types in fields.values() for name in types.values()}
    out = {"values": {name: sorted(values[name].items()) for name in sorted(used)},
           "fields": fields}
    path = os.path.join(HERE, "enums-1.36.json.gz")
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(json.dumps(out, sort_keys=True, separators=(",", ":")).encode())
    print(len(used), "types,", sum(map(len, fields.values())), "fields")


main(sys.argv[1])
