"""What programs do with the Python client `kubernetes`, against the cluster of $KUBECONFIG.

Expects a node that has the image web:1. Leaves nothing behind.
"""

import json
import threading
import time
import urllib.request

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.leaderelection import leaderelection
from kubernetes.leaderelection.electionconfig import Config as ElectionConfig
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.stream import portforward, stream

NS = "python-suite"


def eventually(what, ask, seconds=60):
    end = time.monotonic() + seconds
    while True:
        seen = ask()
        if seen:
            return seen
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def refused(status, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiException as err:
        assert err.status == status, (err.status, err.body)
        return json.loads(err.body)
    raise AssertionError(f"{call} was not refused")


def objects(core):
    """Create, read, patch in three ways, replace, list in pages, delete."""
    for number in range(5):
        core.create_namespaced_config_map(
            NS, {"metadata": {"name": f"c{number}", "labels": {"n": str(number)}}, "data": {"a": "b"}}
        )
    assert refused(409, core.create_namespaced_config_map, NS, {"metadata": {"name": "c0"}})[
        "reason"
    ] == "AlreadyExists"
    first = core.patch_namespaced_config_map("c0", NS, {"data": {"x": "y"}})
    assert first.data == {"a": "b", "x": "y"}, first.data
    patched = core.patch_namespaced_config_map(
        "c0", NS, [{"op": "remove", "path": "/data/a"}, {"op": "test", "path": "/data/x", "value": "y"}]
    )
    assert patched.data == {"x": "y"}
    old = core.read_namespaced_config_map("c1", NS)
    core.patch_namespaced_config_map("c1", NS, {"data": {"a": "changed"}})
    assert refused(409, core.replace_namespaced_config_map, "c1", NS, old)["reason"] == "Conflict"
    seen, token = [], None
    while True:
        page = core.list_namespaced_config_map(NS, limit=2, _continue=token, label_selector="n")
        seen += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert seen == [f"c{number}" for number in range(5)], seen
    one = core.list_namespaced_config_map(NS, field_selector="metadata.name=c3")
    assert len(one.items) == 1
    dry = core.create_namespaced_config_map(NS, {"metadata": {"generateName": "d-"}}, dry_run="All")
    assert dry.metadata.name.startswith("d-")
    refused(404, core.read_namespaced_config_map, dry.metadata.name, NS)
    core.delete_collection_namespaced_config_map(NS, label_selector="n in (3, 4)")
    names = {item.metadata.name for item in core.list_namespaced_config_map(NS).items}
    assert {"c3", "c4"}.isdisjoint(names)


def watches(core):
    """A watch from a list's version sees what comes after it, and ends when told."""
    version = core.list_namespaced_config_map(NS).metadata.resource_version
    core.create_namespaced_config_map(NS, {"metadata": {"name": "w"}})
    core.patch_namespaced_config_map("w", NS, {"data": {"k": "v"}})
    core.delete_namespaced_config_map("w", NS)
    seen = []
    watcher = watch.Watch()
    for event in watcher.stream(
        core.list_namespaced_config_map, NS, resource_version=version, timeout_seconds=20
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            watcher.stop()
    assert seen == [("ADDED", "w"), ("MODIFIED", "w"), ("DELETED", "w")], seen


def custom(api):
    """A definition made by a program is served, to typed and to dynamic clients."""
    definitions = client.ApiextensionsV1Api(api)
    definitions.create_custom_resource_definition({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "shortNames": ["bo"]},
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["seats"], "properties": {
                        "seats": {"type": "integer", "minimum": 1}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                }}},
            }],
        },
    })
    custom_objects = client.CustomObjectsApi(api)
    where = ("example.com", "v1", NS, "boats")

    def established():
        found = definitions.read_custom_resource_definition("boats.example.com")
        return any(
            c.type == "Established" and c.status == "True" for c in found.status.conditions or []
        )

    eventually("the definition is established", established)
    boat = {"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "b"},
            "spec": {"seats": 2}}
    custom_objects.create_namespaced_custom_object(*where, boat)
    told = refused(422, custom_objects.create_namespaced_custom_object, *where,
                   {**boat, "metadata": {"name": "none"}, "spec": {"seats": 0}})
    assert "should be greater than or equal to 1" in told["message"], told
    custom_objects.patch_namespaced_custom_object_status(*where, "b", {"status": {"afloat": True}})
    found = custom_objects.get_namespaced_custom_object(*where, "b")
    assert found["status"] == {"afloat": True} and found["spec"] == {"seats": 2}

    boats = dynamic.DynamicClient(api).resources.get(api_version="example.com/v1", kind="Boat")
    applied = boats.server_side_apply(
        body={**boat, "spec": {"seats": 3}}, namespace=NS, field_manager="suite", force_conflicts=True
    )
    assert applied.spec.seats == 3
    assert boats.get(namespace=NS).items[0].metadata.name == "b"
    boats.delete(name="b", namespace=NS)
    try:
        boats.get(name="b", namespace=NS)
        raise AssertionError("the boat is still there")
    except NotFoundError:
        pass
    definitions.delete_custom_resource_definition("boats.example.com")


def pods(core, api):
    """A pod from a manifest runs; its logs, a command in it and its port are reached."""
    utils.create_from_dict(api, {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web:1"}], "terminationGracePeriodSeconds": 1},
    }, namespace=NS)
    eventually("the pod runs", lambda: core.read_namespaced_pod("web", NS).status.phase == "Running")
    eventually("the pod has logged", lambda: "starts" in core.read_namespaced_pod_log("web", NS))
    said = stream(core.connect_get_namespaced_pod_exec, "web", NS,
                  command=["sh", "-c", "echo out; echo err >&2"],
                  stdout=True, stderr=True, stdin=False, tty=False)
    assert "out" in said and "err" in said, said
    shell = stream(core.connect_get_namespaced_pod_exec, "web", NS, command=["sh"],
                   stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
    shell.write_stdin("echo $((6 * 7)); exit 3\n")
    shell.run_forever(timeout=20)
    assert shell.read_stdout().strip() == "42"
    assert shell.returncode == 3, shell.returncode
    forward = portforward(core.connect_get_namespaced_pod_portforward, "web", NS, ports="80")
    socket = forward.socket(80)
    socket.settimeout(20)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while chunk := socket.recv(4096):
        answer += chunk
    assert b"version 1" in answer, (answer, forward.error(80))
    proxied = core.connect_get_namespaced_pod_proxy_with_path("web", NS, path="")
    assert "version 1" in proxied, proxied
    core.create_namespaced_pod_eviction("web", NS, {"metadata": {"name": "web"}})

    def gone():
        return not core.list_namespaced_pod(NS).items

    eventually("the evicted pod is gone", gone)


def workloads(apps, api):
    """A deployment scales and rolls out as its status tells."""
    apps.create_namespaced_deployment(NS, {
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "web", "image": "web:1"}]}},
        },
    })
    apps.patch_namespaced_deployment_scale("web", NS, {"spec": {"replicas": 2}})
    eventually("two replicas", lambda: apps.read_namespaced_deployment("web", NS).status.ready_replicas == 2)
    scale = apps.read_namespaced_deployment_scale("web", NS)
    assert (scale.status.replicas, scale.status.selector) == (2, "app=d"), scale
    apps.delete_namespaced_deployment("web", NS, propagation_policy="Foreground")
    core = client.CoreV1Api(api)
    eventually("no pod is left", lambda: not core.list_namespaced_pod(NS).items)


def access(api):
    """Reviews answer, and a token acts as its account."""
    core = client.CoreV1Api(api)
    review = client.AuthorizationV1Api(api).create_self_subject_access_review(
        {"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}}
    )
    assert review.status.allowed
    core.create_namespaced_service_account(NS, {"metadata": {"name": "sailor"}})
    token = core.create_namespaced_service_account_token(
        "sailor", NS, client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    ).status.token
    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    sailor = client.ApiClient(settings)
    who = client.AuthenticationV1Api(sailor).create_self_subject_review({})
    assert who.status.user_info.username == f"system:serviceaccount:{NS}:sailor"
    told = refused(403, client.CoreV1Api(sailor).list_namespaced_secret, NS)
    assert "cannot list resource \"secrets\"" in told["message"], told


def election():
    """Two candidates elect one leader on a lease; the other follows when it is gone."""
    led = []

    def candidate(name):
        lock = LeaseLock("leader", NS, name)
        done = threading.Event()

        def lead():
            led.append(name)
            done.wait(60)

        return ElectionConfig(lock, lease_duration=3, renew_deadline=2, retry_period=1,
                              onstarted_leading=lead, onstopped_leading=lambda: None)

    for name in ("one", "two"):
        threading.Thread(
            target=lambda n=name: leaderelection.LeaderElection(candidate(n)).run(), daemon=True
        ).start()
    eventually("somebody leads", lambda: led, 20)
    time.sleep(2)
    assert len(led) == 1, led
    holder = client.CoordinationV1Api().read_namespaced_lease("leader", NS).spec.holder_identity
    assert led[0] in str(holder), (led, holder)


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    assert client.VersionApi(api).get_code().minor == "36"
    core.create_namespace({"metadata": {"name": NS}})
    eventually("the default account", lambda: core.list_namespaced_service_account(NS).items)
    objects(core)
    watches(core)
    custom(api)
    pods(core, api)
    workloads(client.AppsV1Api(api), api)
    access(api)
    election()
    core.delete_namespace(NS)

    def gone():
        return NS not in [n.metadata.name for n in core.list_namespace().items]

    eventually("the namespace is gone", gone)
    print("the Python client is content")


main()
