//! The checks of the fuzz targets, with bytes drawn from good examples that are damaged:
//! the same ones in every run.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use codec::protobuf::encode::Encoder;
use serde_json::json;

#[path = "../../../fuzz/checks.rs"]
mod checks;

/// Damaged copies of each example.
const ROUNDS: usize = 1_500;
/// Bytes that mean something to one parser or another.
const SPECIAL: &[u8] = b"{}[]\",:\\0\n\r\t -~/=!<>()&*|'#%@`$\0\x7f\x80\xff";

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound.max(1)
    }

    /// A copy with a few bytes changed, taken out, doubled or put in.
    fn damaged(&mut self, good: &[u8]) -> Vec<u8> {
        let mut out = good.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(out.len());
            match self.below(5) {
                _ if out.is_empty() => out.push(SPECIAL[self.below(SPECIAL.len())]),
                0 => out[at] = SPECIAL[self.below(SPECIAL.len())],
                1 => out[at] = self.below(256) as u8,
                2 => drop(out.remove(at)),
                3 => out.insert(at, SPECIAL[self.below(SPECIAL.len())]),
                _ => {
                    let end = (at + self.below(16)).min(out.len());
                    let piece = out[at..end].to_vec();
                    let to = self.below(out.len());
                    out.splice(to..to, piece);
                }
            }
        }
        out
    }
}

fn pod() -> serde_json::Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2024-01-02T03:04:05Z"},
        "spec": {"containers": [{"name": "c", "image": "i\n\u{e9}", "env": [{"name": "A", "value": "yes"}],
            "resources": {"requests": {"cpu": "100m"}}, "ports": [{"containerPort": 80}]}]},
    })
}

fn examples(check: &str) -> Vec<Vec<u8>> {
    let pod = pod().to_string();
    let patch = |patch: &str| [pod.as_bytes(), b"\0", patch.as_bytes()].concat();
    match check {
        "protobuf" => {
            let encoder = Encoder::of("v1", "Pod").unwrap();
            vec![encoder.object("v1", "Pod", pod.as_bytes()).unwrap()]
        }
        "json" => vec![pod.clone().into_bytes(), b"[1,-2.5e3,null,true,\"\\u00e9\\n\"]".to_vec()],
        "patches" => vec![
            patch(
                r#"[{"op":"copy","from":"/spec","path":"/spec/x"},{"op":"move","from":"/metadata","path":"/m"},{"op":"test","path":"/kind","value":"Pod"}]"#,
            ),
            patch(
                r#"{"spec":{"containers":[{"name":"c","$patch":"delete"}],"$setElementOrder/containers":[{"name":"c"}]},"metadata":null}"#,
            ),
        ],
        "selectors" => vec![
            b"a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1".to_vec(),
            b"metadata.name=a\\,b,spec.nodeName!=c".to_vec(),
        ],
        "yaml_documents" => vec![
            b"a: &x [1, yes, 0644, ~]\nb: *x\nc: |\n  two\n  lines\nd: {e: 'f''g', \"h\": 1.5}\n"
                .to_vec(),
            codec::yaml::to_string(&self::pod()).into_bytes(),
        ],
        "tokens" => tokens(),
        "expressions" => [
            "self.a.exists(x, x == 2.5) && self.b.c ? self.a.map(x, string(x)).join(',') : 'no'",
            "[1, 2, 3].filter(i, i % 2 == 1).all(i, i > 0) && duration('1h') > duration('1m')",
            "'abc'.matches('^a.*c$') && quantity('1Gi').isGreaterThan(quantity('1M')) && ip('::1') == ip('::1')",
            "{'k': [b'\\x00', null, 0x1F, 1e3, 2u]}.k.size() == 5 || has(self.b.c)",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        "words" => ["1.5Gi", "-12e-3", "100m", "*/15 0-4,22 1 JAN-MAR mon", "1h30m5.5s",
            "^(a|b)*[^c-e]{2,3}\\d+$", "{.a[?(@.b==1)].c}", "$.a[*]['c']"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        _ => {
            let token = r#"{"v":"meta.k8s.io/v1","rv":7,"start":"b\u0000"}"#;
            let encoder = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            vec![encoder.encode(token).into_bytes()]
        }
    }
}

/// A token, a key set, a key file, and the files that name issuers and audit rules.
fn tokens() -> Vec<Vec<u8>> {
    let pem = include_str!("../../pki/testdata/p256.sec1.pem");
    let key = pki::jwt::SigningKey::from_pem(pem).unwrap();
    let rsa = include_str!("../../pki/testdata/rsa.pub.pem");
    let rsa_key = pki::jwt::public_keys(rsa).unwrap().swap_remove(0);
    vec![
        key.sign(&json!({"iss": "https://a", "exp": 1, "aud": ["b"]})).unwrap().into_bytes(),
        json!({"keys": [key.public().jwk(), rsa_key.jwk()]}).to_string().into_bytes(),
        [rsa, pem].concat().into_bytes(),
        b"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Request\n  resources: [{group: a, resources: ['*/x']}]\n  omitStages: [Panic]\n- level: None\n  nonResourceURLs: ['/a*']\n".to_vec(),
        b"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {url: 'https://a', audiences: [b]}\n  claimMappings: {username: {expression: 'claims.sub + \"x\"'}}\n  claimValidationRules: [{claim: a, requiredValue: b}]\n".to_vec(),
    ]
}

#[test]
fn no_bytes_hurt_a_parser() {
    for (name, check) in checks::ALL {
        let mut draw = Draw(1);
        for good in examples(name) {
            check(&good);
            for _ in 0..ROUNDS {
                let bytes = draw.damaged(&good);
                check(&bytes);
            }
        }
    }
}

#[test]
fn patches_do_not_explode() {
    let big = "x".repeat(1 << 20);
    let copies: Vec<serde_json::Value> = (0..9_999)
        .map(|at| json!({"op": "copy", "from": "/a", "path": format!("/b{at}")}))
        .collect();
    let mut object = json!({"a": big});
    let refused = api::change::json_patch::json_patch(&mut object, &json!(copies));
    assert!(refused.is_err());
    let doubling: Vec<serde_json::Value> =
        (0..60).map(|at| json!({"op": "copy", "from": "", "path": format!("/c{at}")})).collect();
    let mut object = json!({"a": 1});
    assert!(api::change::json_patch::json_patch(&mut object, &json!(doubling)).is_err());
}
