//! Trust anchors that the cluster hands out, and certificates of pods, by the switches that
//! users of upstream know, with a little signer as somebody would write it around openssl.

use crate::cluster::Cluster;
use crate::machine::{Machine, eventually};

const GATES: &str = "--kube-apiserver-arg=feature-gates=ClusterTrustBundle=true,\
                     ClusterTrustBundleProjection=true,PodCertificateRequest=true";
const SERVED: &str = "--kube-apiserver-arg=runtime-config=\
                      certificates.k8s.io/v1beta1/clustertrustbundles=true,\
                      certificates.k8s.io/v1beta1/podcertificaterequests=true";
const KUBELET: &str =
    "--kubelet-arg=feature-gates=ClusterTrustBundleProjection=true,PodCertificateRequest=true";

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: web:1
    command: [sleep, '1000']
    volumeMounts: [{name: trust, mountPath: /trust}]
  volumes:
  - name: trust
    projected:
      sources:
      - clusterTrustBundle: {name: roots, path: roots.pem}
      - clusterTrustBundle:
          signerName: example.com/s
          labelSelector: {}
          path: signer.pem
      - clusterTrustBundle:
          signerName: kubernetes.io/kube-apiserver-serving
          labelSelector: {}
          path: apiserver.pem
      - podCertificate:
          signerName: example.com/s
          keyType: ECDSAP521
          credentialBundlePath: all.pem
";

fn bundle(name: &str, signer: &str, pem: &str) -> String {
    let text: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    let signer =
        if signer.is_empty() { String::new() } else { format!("  signerName: {signer}\n") };
    format!(
        "apiVersion: certificates.k8s.io/v1beta1\nkind: ClusterTrustBundle\n\
         metadata: {{name: '{name}'}}\nspec:\n{signer}  trustBundle: |\n{text}"
    )
}

/// Makes an authority; returns its certificate.
fn authority(cluster: &Cluster, name: &str) -> String {
    cluster.machine.sh(&format!(
        "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 10 -subj /CN={name} \
         -keyout {name}.key -out {name}.crt 2>/dev/null && cat {name}.crt"
    ))
}

/// Answers a request as its signer; returns what it was answered with.
fn sign(cluster: &Cluster, request: &serde_json::Value) -> String {
    let name = request["metadata"]["name"].as_str().unwrap();
    let stub = request["spec"]["stubPKCS10Request"].as_str().unwrap();
    let seconds = request["spec"]["maxExpirationSeconds"].as_i64().unwrap();
    assert_eq!(seconds, 86_400);
    let script = format!(
        "cd /tmp && echo {stub} | base64 -d > request.der && \
         openssl req -inform DER -in request.der -verify -noout >/dev/null 2>&1 && \
         openssl x509 -req -inform DER -in request.der -CA ca.crt -CAkey ca.key -days 1 \
         -set_serial 7 -out leaf.crt 2>/dev/null && \
         openssl x509 -in leaf.crt -noout -startdate -enddate -dateopt iso_8601 && date -u +%FT%TZ"
    );
    let said = cluster.machine.sh(&script);
    let lines: Vec<&str> = said.lines().collect();
    let time = |line: &str| line.split_once('=').unwrap().1.replace(' ', "T");
    let (begin, end, now) = (time(lines[0]), time(lines[1]), lines[2]);
    let refresh =
        cluster.machine.sh(&format!("date -u -d '{end} 1 hour ago' +%FT%TZ")).trim().to_owned();
    let chain = cluster.machine.read("/tmp/leaf.crt");
    let status = serde_json::json!({"status": {
        "conditions": [{"type": "Issued", "status": "True", "reason": "Signed",
            "message": "as asked", "lastTransitionTime": now}],
        "certificateChain": chain, "notBefore": begin, "notAfter": end,
        "beginRefreshAt": refresh}});
    cluster.kubectl(&[
        "patch",
        "podcertificaterequest",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ]);
    chain
}

#[test]
fn pods_see_trust_anchors_and_get_certificates_of_their_own() {
    let cluster = Cluster::with(Machine::new(), &[GATES, SERVED, KUBELET]);
    let said = cluster.k("explain clustertrustbundle.spec.trustBundle");
    assert!(said.contains("FIELD: trustBundle <string>"), "{said}");
    let own = cluster.until("get clustertrustbundles", 20, |text| {
        text.contains("kubernetes.io:kube-apiserver-serving:")
    });
    assert!(own.lines().next().unwrap().contains("SIGNERNAME"), "{own}");

    let ca = authority(&cluster, "ca");
    let refused = cluster.try_apply(&[], &bundle("example.com:s:x", "", &ca));
    assert!(!refused.status.success());
    cluster.apply(&bundle("roots", "", &ca));
    cluster.apply(POD);
    let missing = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
    cluster.until("get events", 30, |text| text.contains(missing));
    cluster.apply(&bundle("example.com:s:one", "example.com/s", &ca));

    // The kubelet asks for the pod; whoever signs for the signer answers.
    let request = eventually("the kubelet asks", 60, || {
        let all = cluster.json("get podcertificaterequests");
        all["items"].get(0).cloned().ok_or_else(|| cluster.k("describe pod p"))
    });
    let pod = cluster.json("get pod p");
    assert_eq!(request["spec"]["podUID"], pod["metadata"]["uid"]);
    let chain = sign(&cluster, &request);
    let listed = cluster.k("get podcertificaterequests");
    assert!(listed.contains("SIGNERNAME") && listed.contains("Issued"), "{listed}");
    cluster.k("wait pod/p --for=condition=Ready --timeout=60s");

    let shown = |file: &str| cluster.in_pod("p", &format!("cat /trust/{file}"));
    assert_eq!(shown("roots.pem"), ca);
    assert_eq!(shown("signer.pem"), ca);
    let all = shown("all.pem");
    let (key, rest) = all.split_once("-----END PRIVATE KEY-----\n").unwrap();
    assert_eq!(rest, chain);
    cluster.machine.write("/tmp/pod.key", format!("{key}-----END PRIVATE KEY-----\n").as_bytes());
    let same = cluster.machine.sh("cd /tmp && openssl pkey -in pod.key -pubout > a && \
         openssl x509 -in leaf.crt -noout -pubkey > b && cmp a b && \
         openssl verify -CAfile ca.crt leaf.crt");
    assert!(same.contains("leaf.crt: OK"), "{same}");
    cluster.machine.write("/tmp/apiserver.pem", shown("apiserver.pem").as_bytes());
    let answered = cluster
        .machine
        .sh("openssl s_client -connect 127.0.0.1:6443 -CAfile /tmp/apiserver.pem </dev/null 2>&1");
    assert!(answered.contains("Verify return code: 0 (ok)"), "{answered}");

    let other = authority(&cluster, "other");
    cluster.apply(&bundle("roots", "", &other));
    eventually("the file follows the bundle", 120, || {
        let now = shown("roots.pem");
        if now == other { Ok(()) } else { Err(now) }
    });
    cluster.k("delete pod p");
    cluster.reset();
}
