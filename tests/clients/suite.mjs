// What programs do with `@kubernetes/client-node`, against the cluster of $KUBECONFIG.
//
// Expects a node that has the image web:1. Leaves nothing behind.

import assert from 'node:assert/strict';
import net from 'node:net';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const NS = 'node-suite';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

async function eventually(what, ask, seconds = 60) {
    const end = Date.now() + seconds * 1000;
    for (;;) {
        const seen = await ask();
        if (seen) return seen;
        assert(Date.now() < end, `not within ${seconds} s: ${what}`);
        await new Promise((done) => setTimeout(done, 100));
    }
}

async function refused(code, call) {
    const failed = await call.then(() => null, (err) => err);
    assert(failed, `not refused with ${code}`);
    assert.equal(failed.code, code, failed.body);
    return JSON.parse(failed.body);
}

function text(stream) {
    const seen = { said: '' };
    stream.on('data', (chunk) => { seen.said += chunk; });
    return seen;
}

/** Create, read, patch in several ways, replace, list in pages. */
async function objects() {
    for (let n = 0; n < 4; n++) {
        const body = { metadata: { name: `c${n}`, labels: { n: `${n}` } }, data: { a: 'b' } };
        await core.createNamespacedConfigMap({ namespace: NS, body });
    }
    const again = core.createNamespacedConfigMap({ namespace: NS, body: { metadata: { name: 'c0' } } });
    assert.equal((await refused(409, again)).reason, 'AlreadyExists');
    const patched = await core.patchNamespacedConfigMap(
        { name: 'c0', namespace: NS, body: [{ op: 'add', path: '/data/x', value: 'y' }] },
        k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.JsonPatch),
    );
    assert.deepEqual(patched.data, { a: 'b', x: 'y' });
    const merged = await core.patchNamespacedConfigMap(
        { name: 'c0', namespace: NS, body: { data: { x: null } } },
        k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch),
    );
    assert.deepEqual(merged.data, { a: 'b' });
    const old = await core.readNamespacedConfigMap({ name: 'c1', namespace: NS });
    await core.replaceNamespacedConfigMap({ name: 'c1', namespace: NS, body: { ...old, data: { a: 'c' } } });
    const stale = core.replaceNamespacedConfigMap({ name: 'c1', namespace: NS, body: old });
    assert.equal((await refused(409, stale)).reason, 'Conflict');
    const names = [];
    let next;
    do {
        const page = await core.listNamespacedConfigMap({ namespace: NS, limit: 3, _continue: next, labelSelector: 'n' });
        names.push(...page.items.map((item) => item.metadata.name));
        next = page.metadata._continue;
    } while (next);
    assert.deepEqual(names, ['c0', 'c1', 'c2', 'c3']);
}

/** Objects of any kind, applied by a manager that owns its fields. */
async function generic() {
    const api = k8s.KubernetesObjectApi.makeApiClient(config);
    const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied', namespace: NS }, data: { k: '1' } };
    const apply = (data, manager, force) =>
        api.patch({ ...body, data }, undefined, undefined, manager, force, k8s.PatchStrategy.ServerSideApply);
    assert.equal((await apply({ k: '1' }, 'one')).data.k, '1');
    const conflict = await refused(409, apply({ k: '2' }, 'two'));
    assert.match(conflict.message, /conflict with "one"/);
    assert.equal((await apply({ k: '2' }, 'two', true)).data.k, '2');
    const read = await api.read(body);
    // Whoever owns nothing any more is not named.
    assert.deepEqual(read.metadata.managedFields.map((f) => f.manager), ['two']);
    await api.delete(body);
}

/** An informer lists, follows, and tells of each change. */
async function informer() {
    const list = () => core.listNamespacedConfigMap({ namespace: NS });
    const seen = [];
    const watch = k8s.makeInformer(config, `/api/v1/namespaces/${NS}/configmaps`, list);
    for (const verb of ['add', 'update', 'delete']) {
        watch.on(verb, (object) => seen.push(`${verb} ${object.metadata.name}`));
    }
    watch.on('error', (err) => seen.push(`error ${err}`));
    await watch.start();
    await eventually('the initial list', () => seen.includes('add c3'));
    await core.createNamespacedConfigMap({ namespace: NS, body: { metadata: { name: 'late' } } });
    await eventually('the addition', () => seen.includes('add late'));
    await core.patchNamespacedConfigMap(
        { name: 'late', namespace: NS, body: { data: { a: 'b' } } },
        k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.StrategicMergePatch),
    );
    await eventually('the update', () => seen.includes('update late'));
    await core.deleteNamespacedConfigMap({ name: 'late', namespace: NS });
    await eventually('the deletion', () => seen.includes('delete late'));
    assert.equal(watch.get('late', NS), undefined);
    await watch.stop();
}

/** A pod's logs, commands, port and files. */
async function pods() {
    const body = {
        metadata: { name: 'web' },
        spec: { terminationGracePeriodSeconds: 1, containers: [{ name: 'web', image: 'web:1' }] },
    };
    await core.createNamespacedPod({ namespace: NS, body });
    const phase = async () => (await core.readNamespacedPod({ name: 'web', namespace: NS })).status.phase;
    await eventually('the pod runs', async () => (await phase()) === 'Running');

    const logs = new PassThrough();
    const logged = text(logs);
    const following = await new k8s.Log(config).log(NS, 'web', 'web', logs, { follow: true, tailLines: 5 });
    await eventually('the log', () => logged.said.includes('starts'));
    following.abort();

    const exec = new k8s.Exec(config);
    const [out, err, input] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const [said, complained] = [text(out), text(err)];
    let status;
    await exec.exec(NS, 'web', 'web', ['sh'], out, err, input, false, (ended) => { status = ended; });
    input.write('echo $((6 * 7)); echo no >&2; exit 3\n');
    await eventually('the shell ends', () => status);
    assert.equal(said.said.trim(), '42');
    assert.equal(complained.said.trim(), 'no');
    assert.equal(status.details.causes[0].message, '3');

    const forward = new k8s.PortForward(config);
    const server = net.createServer((socket) => forward.portForward(NS, 'web', [80], socket, null, socket));
    await new Promise((done) => server.listen(0, '127.0.0.1', done));
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);
    assert.match(await answer.text(), /version 1/);
    server.close();

    await core.deleteNamespacedPod({ name: 'web', namespace: NS });
    await eventually('the pod is gone', async () => (await core.listNamespacedPod({ namespace: NS })).items.length === 0);
}

/** A deployment is scaled by its subresource and tells how far it is. */
async function workloads() {
    const labels = { app: 'd' };
    const containers = [{ name: 'web', image: 'web:1' }];
    const template = { metadata: { labels }, spec: { terminationGracePeriodSeconds: 1, containers } };
    const body = { metadata: { name: 'web' }, spec: { replicas: 1, selector: { matchLabels: labels }, template } };
    await apps.createNamespacedDeployment({ namespace: NS, body });
    const where = { name: 'web', namespace: NS };
    const scale = await apps.readNamespacedDeploymentScale(where);
    scale.spec.replicas = 2;
    // The controller writes at the same time; this says nothing of what it writes.
    delete scale.metadata.resourceVersion;
    await apps.replaceNamespacedDeploymentScale({ ...where, body: scale });
    const ready = async () => (await apps.readNamespacedDeployment(where)).status.readyReplicas;
    await eventually('two replicas', async () => (await ready()) === 2);
    await apps.deleteNamespacedDeployment({ ...where, propagationPolicy: 'Foreground' });
    await eventually('no pod is left', async () => (await core.listNamespacedPod({ namespace: NS })).items.length === 0);
}

await core.createNamespace({ body: { metadata: { name: NS } } });
const accounts = () => core.listNamespacedServiceAccount({ namespace: NS });
await eventually('the default account', async () => (await accounts()).items.length > 0);
await objects();
await generic();
await informer();
await pods();
await workloads();
await core.deleteNamespace({ name: NS });
await eventually('the namespace is gone', async () =>
    (await core.listNamespace()).items.every((namespace) => namespace.metadata.name !== NS));
console.log('the Node client is content');
process.exit(0);
