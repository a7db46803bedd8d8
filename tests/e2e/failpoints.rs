//! The process dies, as by kill -9, between every two steps of a pod's life: the next one
//! brings it to the same end, and nothing is left behind.
//!
//! The points come from the executable itself, so that none is forgotten.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::bad_days::registry_with;
use crate::cluster::Cluster;
use crate::images;
use crate::machine::Machine;

const FILE: &str = "/tmp/failpoint";
const IMAGE: &str = "localhost:5000/web:3";
/// Restarts included; a point that is not reached is told after this long as well.
const STEP_SECONDS: u64 = 40;
const REST: Duration = Duration::from_secs(10);
/// Then the rest would only repeat it.
const WRONG_MAX: usize = 10;

/// A bit of everything that is made for a pod and has to go with it.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: mortal}
spec:
  # A container that is thought to have run, or is run twice, shows.
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  securityContext: {fsGroup: 1002}
  containers:
  - name: main
    image: localhost:5000/web:3
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo started >> /local/starts; exec /entry"]
    lifecycle:
      postStart: {exec: {command: ["true"]}}
      preStop: {exec: {command: ["true"]}}
    resources: {requests: {cpu: 10m}, limits: {memory: 64Mi}}
    volumeMounts:
    - {name: map, mountPath: /map}
    - {name: secret, mountPath: /secret}
    - {name: empty, mountPath: /empty}
    - {name: empty, mountPath: /part, subPath: a/b}
    - {name: memory, mountPath: /memory}
    - {name: local, mountPath: /local}
    volumeDevices: [{name: device, devicePath: /dev/disk}]
  volumes:
  - {name: map, configMap: {name: map}}
  - {name: secret, secret: {secretName: secret}}
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: local, persistentVolumeClaim: {claimName: local}}
  - {name: device, persistentVolumeClaim: {claimName: device}}
"#;

/// What the pod needs of others, made once. The device is a file.
const AROUND: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: map}
data: {key: of-map}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {key: of-secret}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Mi}
  storageClassName: none
  local: {path: /srv/local}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: local}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: none
  volumeName: local
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: device}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Mi}
  storageClassName: none
  volumeMode: Block
  local: {path: /srv/device}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: device}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: none
  volumeMode: Block
  volumeName: device
  resources: {requests: {storage: 1Mi}}
"#;

/// The names of all points, as the executable has them: `failpoint{NAME}`.
fn points() -> Vec<String> {
    const BEGIN: &[u8] = b"failpoint{";
    let program = std::fs::read(env!("CARGO_BIN_EXE_coracle")).unwrap();
    let mut found = BTreeSet::new();
    let mut rest = &program[..];
    while let Some(at) = find(rest, BEGIN) {
        rest = &rest[at + BEGIN.len()..];
        let end =
            rest.iter().position(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-'));
        if let Some(end) = end.filter(|end| *end > 0 && rest[*end] == b'}') {
            found.insert(String::from_utf8(rest[..end].to_vec()).unwrap());
        }
    }
    found.into_iter().collect()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

struct Walk {
    cluster: Cluster,
    deaths: u32,
}

impl Walk {
    fn new() -> Self {
        let mut cluster = Cluster::not_started(Machine::new(), &[]);
        cluster.environment = vec![format!("CORACLE_FAILPOINT_FILE={FILE}")];
        cluster.start();
        registry_with(&cluster.machine, &images::keeping("3"), "3");
        cluster.machine.sh("mkdir -p /srv/local && truncate -s 1M /srv/device");
        cluster.apply(AROUND);
        let phases = "get pvc -o jsonpath={.items[*].status.phase}";
        cluster.until(phases, 30, |text| text == "Bound Bound");
        Self { cluster, deaths: 0 }
    }

    /// Does a step until it is done; a process that died is started again.
    fn step<T>(&mut self, what: &str, mut ask: impl FnMut(&Cluster) -> Result<T, String>) -> T {
        let deadline = Instant::now() + Duration::from_secs(STEP_SECONDS);
        loop {
            if !self.cluster.is_running() {
                self.deaths += 1;
                self.cluster.start();
            }
            match ask(&self.cluster) {
                Ok(value) => return value,
                Err(seen) => assert!(
                    Instant::now() < deadline,
                    "not within {STEP_SECONDS} s: {what}\n{seen}\n{}",
                    self.cluster.log()
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A pod's life, from the pull of its image to the image's removal.
    fn live(&mut self) {
        self.cluster.machine.sh("rm -f /srv/local/*");
        self.step("the pod is made", |cluster| {
            let output = cluster.try_apply(&[], POD);
            if output.status.success() { Ok(()) } else { Err(crate::machine::told(&output)) }
        });
        self.step("the pod is Ready and its container has started once", |cluster| {
            let path = "jsonpath={.status.phase} {.status.containerStatuses[0].ready} \
                 {.status.containerStatuses[0].restartCount}";
            let seen = cluster.try_kubectl(&["get", "pod", "mortal", "-o", path])?;
            assert!(!seen.starts_with("Failed") && !seen.starts_with("Succeeded"), "{seen}");
            if seen == "Running true 0" { Ok(()) } else { Err(seen) }
        });
        let look = "echo written | dd of=/dev/disk bs=512 conv=sync 2> /dev/null && cat /map/key /secret/key /local/starts && touch /empty/a /part/b /memory/c \
             && /bin/wget -q -O - http://$(hostname)/version";
        // Its pages lie in a volume that the image declares.
        let seen = self.step("the pod has all it was promised", |cluster| {
            cluster.try_kubectl(&["exec", "mortal", "--", "sh", "-c", look])
        });
        assert_eq!(seen, "of-mapof-secretstarted\n3");
        let written = self.cluster.machine.sh("sync; head -c 7 /srv/device");
        assert_eq!(written, "written");
        let servers = self.cluster.machine.sh("pgrep -c -x httpd");
        assert_eq!(servers.trim(), "1", "one container runs");
        self.step("the pod is to go", |cluster| {
            cluster.try_kubectl(&["delete", "pod", "mortal", "--wait=false", "--ignore-not-found"])
        });
        self.step("the pod is gone", |cluster| {
            let seen = cluster.try_kubectl(&["get", "pods", "--no-headers"])?;
            if seen.contains("mortal") { Err(seen) } else { Ok(()) }
        });
        self.step("the image is gone", |cluster| {
            let list = cluster.machine.run(&["/mnt/coracle/coracle", "images", "list"]);
            let list = crate::machine::told(&list);
            // With its tag in a column of its own.
            if list.contains("web") && !list.contains(IMAGE) {
                return Ok(());
            }
            let removed = cluster.machine.run(&["/mnt/coracle/coracle", "images", "remove", IMAGE]);
            Err(crate::machine::told(&removed))
        });
    }

    /// Dies at the point, is started again, and leaves nothing that was not there before.
    fn die_at(&mut self, point: &str, before: &[String]) {
        self.deaths = 0;
        self.cluster.machine.write(FILE, format!("failpoint{{{point}}}").as_bytes());
        self.live();
        // Some steps come after all that is waited for above.
        let deadline = Instant::now() + REST;
        while self.deaths == 0 {
            assert!(Instant::now() < deadline, "{point} is not reached\n{}", self.cluster.log());
            std::thread::sleep(Duration::from_millis(20));
            self.step("the server runs", |_| Ok(()));
        }
        assert_eq!(self.deaths, 1, "the process dies at {point} and nowhere else");
        self.cluster.machine.assert_unchanged(before);
    }
}

/// Every one of the points whose names begin with one of `rooms`.
fn die_everywhere(rooms: &[&str]) {
    let mut points = points();
    let room = |point: &String| point.split('/').next().unwrap_or_default().to_string();
    let stray = points.iter().find(|point| !ROOMS.contains(&room(point).as_str()));
    assert_eq!(stray, None, "a point that no test dies at");
    points.retain(|point| rooms.contains(&room(point).as_str()));
    assert!(points.len() > 30, "{points:?}");
    let mut wrong = Vec::new();
    let mut rest = points.iter();
    // Whatever went wrong does not show in the points after it.
    while rest.len() > 0 {
        let mut walk = Walk::new();
        walk.live();
        assert_eq!(walk.deaths, 0);
        let before = walk.cluster.machine.traces();
        let is_well = rest.all(|point| {
            let die = std::panic::AssertUnwindSafe(|| walk.die_at(point, &before));
            let is_well = std::panic::catch_unwind(die).is_ok();
            if !is_well {
                eprintln!("that was {point}");
                wrong.push(point);
            }
            is_well
        });
        if is_well {
            let end =
                "kill $(pgrep -x docker-registry); rm -r /tmp/registry /srv/local /srv/device";
            walk.cluster.machine.sh(end);
            walk.cluster.reset();
        }
        assert!(wrong.len() < WRONG_MAX, "{wrong:?}");
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// At those of the shim it dies in the kubelet's own suite.
const ROOMS: [&str; 7] = ["container", "image", "network", "pod", "sandbox", "shim", "volume"];

#[test]
fn the_process_dies_at_any_step_of_the_runtime() {
    die_everywhere(&["container", "image", "network", "sandbox"]);
}

#[test]
fn the_process_dies_at_any_step_of_the_kubelet() {
    die_everywhere(&["pod", "volume"]);
}
