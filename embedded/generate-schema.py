#!/usr/bin/env python3
"""Makes schema-1.36.json.gz and descriptions-1.36.json.gz, the API descriptions the binary carries.

    embedded/generate-schema.py DEFINITIONS GO_TYPES

DEFINITIONS is _definitions.json (v1.36.0-local) of the PyPI package kubernetes-validate 1.37.0.
GO_TYPES is a directory with the types.go files of the modules k8s.io/api, apimachinery,
apiextensions-apiserver and kube-aggregator (release-1.36) in directories of those names; of them
only one fact per field is taken: how its zero value is written in JSON.

Only what the resources of resources.json reach is kept. A field is a class and a type; fields
stand in the order in which upstream writes them.
Classes: p pointer, left out when absent; o left out when zero; z always written; s structure
by value, always written; Z structure left out when empty; n null when absent.
Types: s string, y base64, b boolean, i int32, l int64, f double, t time, u time with
microseconds, q quantity, x integer or string, * anything, @NAME another definition; objects:
{"m": values} a map, {"l": items, "t": list type, "k": keys, "mk": merge key, "ps": strategy}.
"""
import gzip, json, os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = [
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "apimachinery/pkg/apis/meta/v1"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.",
     "apiextensions-apiserver/pkg/apis/apiextensions/v1"),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.",
     "kube-aggregator/pkg/apis/apiregistration/v1"),
]
LEAVES = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "x",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "t",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "u",
}
EXTRA_ROOTS = ["DeleteOptions", "Status", "WatchEvent", "Patch", "APIGroup", "APIGroupList",
               "APIResourceList", "APIVersions"]
META = "io.k8s.apimachinery.pkg.apis.meta.v1."


def package_of(name):
    for prefix, path in PACKAGES:
        if name.startswith(prefix):
            return path
    match = re.match(r"io\.k8s\.api\.(\w+)\.(\w+)\.", name)
    return f"api/{match.group(1)}/{match.group(2)}" if match else None


class Go:
    """The structures and named types of one Go package."""

    cache = {}

    @classmethod
    def package(cls, root, path):
        if path not in cls.cache:
            cls.cache[path] = cls(root, path)
        return cls.cache[path]

    def __init__(self, root, path):
        self.root, self.structs, self.named = root, {}, {}
        folder = os.path.join(root, path)
        for file in sorted(os.listdir(folder)):
            if not file.endswith(".go") or file.startswith("zz_") or "swagger_doc" in file:
                continue
            text = open(os.path.join(folder, file)).read()
            for match in re.finditer(r"^type (\w+) struct \{(.*?)^\}", text, re.M | re.S):
                self.structs[match.group(1)] = match.group(2)
            for match in re.finditer(r"^(?:type |\t)(\w+) ([\[\w\*][^\s{(=]*)$", text, re.M):
                self.named[match.group(1)] = match.group(2)

    def lookup(self, typ):
        """The package and name a type expression refers to."""
        if "." in typ:
            alias, name = typ.split(".")
            path = {"metav1": "apimachinery/pkg/apis/meta/v1", "v1": "api/core/v1",
                    "corev1": "api/core/v1", "core": "api/core/v1",
                    "apiextensionsv1": None}.get(alias)
            return (Go.package(self.root, path), name) if path else (None, name)
        return self, typ

    def fields(self, name):
        for line in self.structs.get(name, "").splitlines():
            match = re.match(r'\t(\w+\s+)?(\S+)\s+`[^`]*?json:"([^"]*)"', line)
            if not match:
                continue
            typ, tag = match.group(2), match.group(3).split(",")
            if tag[0] == "-":
                continue
            if "inline" in tag or not tag[0]:
                package, inner = self.lookup(typ.lstrip("*"))
                if package:
                    yield from package.fields(inner)
                continue
            yield tag[0], self.resolve(typ), set(tag[1:])

    def resolve(self, typ):
        if typ[0] == "*":
            return "pointer"
        if typ.startswith("[]") or typ.startswith("map["):
            return "many"
        base = typ.split(".")[-1]
        if base in ("Time", "MicroTime", "Quantity", "IntOrString", "RawExtension", "JSON"):
            return "value"
        package, name = self.lookup(typ)
        if package and name in package.structs:
            return "struct"
        if package and name in package.named and package.named[name] != typ:
            return package.resolve(package.named[name])
        return "scalar"


def field_class(kind, tags):
    if kind == "pointer":
        return "p" if tags & {"omitempty", "omitzero"} else "n"
    if "omitzero" in tags:
        return "Z" if kind == "struct" else "o"
    if kind == "struct":
        return "s"
    if kind == "value":
        return "z"
    return "o" if "omitempty" in tags else "z"


def compact(schema):
    if "$ref" in schema:
        name = schema["$ref"].split("/")[-1]
        leaf = LEAVES.get(name, "@" + name.removeprefix("io.k8s."))
        return leaf
    types = schema.get("type", [])
    typ = types if isinstance(types, str) else (types or [None])[0]
    fmt = schema.get("format")
    if typ == "string":
        return {"byte": "y", "date-time": "t"}.get(fmt, "s")
    if typ == "integer":
        return "l" if fmt == "int64" else "i"
    if typ in ("boolean", "number"):
        return "b" if typ == "boolean" else "f"
    if typ == "array":
        out = {"l": compact(schema["items"])}
        for key, ours in (("list-type", "t"), ("list-map-keys", "k"), ("patch-merge-key", "mk"),
                          ("patch-strategy", "ps")):
            if "x-kubernetes-" + key in schema:
                out[ours] = schema["x-kubernetes-" + key]
        return out
    if typ == "object":
        if "additionalProperties" in schema:
            out = {"m": compact(schema["additionalProperties"])}
            if schema.get("x-kubernetes-map-type"):
                out["t"] = schema["x-kubernetes-map-type"]
            return out
        return {"m": "*", "t": "atomic"}
    return "*"


def references(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value.split("/")[-1]
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def reachable(definitions, resources):
    wanted = set()
    for group in resources["groups"]:
        for resource in group["resources"]:
            for version in group["versions"]:
                wanted.add((group["group"], version, resource["kind"]))
                wanted.add((group["group"], version, resource["kind"] + "List"))
            for sub in resource.get("subresources", []):
                wanted.add((sub.get("group", group["group"]),
                            sub.get("version", group["versions"][0]), sub["kind"]))
    todo = [META + name for name in EXTRA_ROOTS]
    for name, definition in definitions.items():
        for gvk in definition.get("x-kubernetes-group-version-kind", []):
            if (gvk["group"], gvk["version"], gvk["kind"]) in wanted:
                todo.append(name)
    found = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(references(definitions[name]))
    return sorted(found)


def main():
    definitions = json.load(open(sys.argv[1]))["$defs"]
    resources = json.load(open(os.path.join(HERE, "resources.json")))
    types, descriptions, unknown = {}, {}, []
    for name in reachable(definitions, resources):
        definition = definitions[name]
        short = name.removeprefix("io.k8s.")
        words = {"": definition.get("description", "")}
        out = {}
        gvks = definition.get("x-kubernetes-group-version-kind")
        if gvks and not any(name.startswith(META + x) for x in ("DeleteOptions", "WatchEvent")):
            out["gvk"] = [[g["group"], g["version"], g["kind"]] for g in gvks]
        elif gvks:
            out["gvk"] = [["", "v1", gvks[0]["kind"]]]
        if definition.get("x-kubernetes-map-type"):
            out["t"] = definition["x-kubernetes-map-type"]
        if definition.get("required"):
            out["r"] = definition["required"]
        if "properties" in definition:
            path = package_of(name)
            go = Go.package(sys.argv[2], path)
            classes = {n: field_class(k, t) for n, k, t in go.fields(name.split(".")[-1])}
            classes.update(apiVersion=classes.get("apiVersion", "o"), kind=classes.get("kind", "o"))
            props = {}
            for prop, schema in definition["properties"].items():
                words[prop] = schema.get("description", "")
                if prop not in classes:
                    unknown.append(f"{name}.{prop}")
                cls, typ = classes.get(prop, "o"), compact(schema)
                if isinstance(typ, str):
                    props[prop] = cls + typ
                    extra = {k: schema["x-kubernetes-" + v] for k, v in
                             (("ps", "patch-strategy"), ("t", "map-type"))
                             if "x-kubernetes-" + v in schema}
                    if extra:
                        props[prop] = {"c": cls, "@": typ, **extra}
                else:
                    props[prop] = {"c": cls, **typ}
            # Go writes a structure's fields in the order of its declaration.
            order = {field: at for at, field in enumerate(["kind", "apiVersion", *classes])}
            out["p"] = dict(sorted(props.items(), key=lambda item: order.get(item[0], 1000)))
        elif definition.get("type"):
            out["o"] = compact(definition)
        types[short] = out
        descriptions[short] = {k: v for k, v in words.items() if v}
    if unknown:
        print("no Go field for:", *unknown, file=sys.stderr)
    for file, value in (("schema", types), ("descriptions", descriptions)):
        path = os.path.join(HERE, f"{file}-1.36.json.gz")
        data = json.dumps(value, separators=(",", ":")).encode()
        with open(path, "wb") as out:
            out.write(gzip.compress(data, 9, mtime=0))
        print(path, len(value), "definitions", len(data), "->", os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
