//! Hooks of devices of the Container Device Interface, in a container's whole life.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use runtime::cri::*;
use serde_json::{Value, json};

use crate::world::World;

/// Keeps what it is told and in which mount namespace, and what its argument asks for besides.
const SCRIPT: &str = r#"#!/bin/sh
stage=$1
cat > "$OUT/$stage.json"
[ -e "$OUT/fail-$stage" ] && { echo "no $stage" >&2; exit 3; }
readlink /proc/self/ns/mnt > "$OUT/$stage.mnt"
echo "$stage" >> "$OUT/order"
if [ "$stage" = createContainer ]; then
    bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' "$OUT/$stage.json")
    root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' "$bundle/config.json")
    echo made > "$root/made"
fi
"#;
const STAGES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Those that run in the container's root find their program in the image.
fn describe(world: &World) -> std::path::PathBuf {
    let out = world.dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let program = world.dir.path().join("hook");
    std::fs::write(&program, SCRIPT).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hook = |stage: &&str| match *stage {
        "startContainer" => json!({"hookName": stage, "path": "/bin/touch",
                                   "args": ["touch", "/begun"]}),
        stage => json!({"hookName": stage, "path": program, "args": ["hook", stage],
                        "env": [format!("OUT={}", out.display()), "PATH=/usr/bin:/bin"]}),
    };
    let hooks: Vec<Value> = STAGES.iter().map(hook).collect();
    let spec = json!({"cdiVersion": "0.6.0", "kind": "v.com/gpu", "devices": [
        {"name": "0", "containerEdits": {"hooks": hooks}}]});
    std::fs::create_dir_all(world.dir.path().join("cdi")).unwrap();
    std::fs::write(world.dir.path().join("cdi/v.json"), spec.to_string()).unwrap();
    out
}

fn with_device(world: &World, script: &str) -> ContainerConfig {
    ContainerConfig { cdi_devices: vec!["v.com/gpu=0".into()], ..world.container("a", script) }
}

fn read(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap_or_default()
}

async fn lives(handler: &str, order: &[&str]) {
    let world = World::new().await;
    let out = describe(&world);
    let pod = PodSandboxConfig { runtime_handler: handler.into(), ..world.sandbox_config() };
    let sandbox = world.runtime.run_pod_sandbox(pod).await.unwrap();
    let id =
        world.start(&sandbox, with_device(&world, "cat /made; test -e /begun && echo begun")).await;
    let ended = world.ended(&id).await;
    assert_eq!(ended.exit_code, 0);
    let lines: Vec<String> = world.log("a").into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["made", "begun"], "{handler}");
    world.runtime.remove_container(&id).await.unwrap();
    assert_eq!(read(&out, "order").lines().collect::<Vec<_>>(), order, "{handler}");
    let state = |stage: &str| -> Value {
        serde_json::from_str(&read(&out, &format!("{stage}.json"))).unwrap()
    };
    for stage in order {
        assert_eq!(state(stage)["id"], id, "{handler} {stage}");
        assert!(state(stage)["bundle"].is_string());
    }
    assert_eq!(state("poststop")["status"], "stopped");
    // Of the container's mounts only one is told.
    let mounts = |stage: &str| read(&out, &format!("{stage}.mnt"));
    assert_ne!(mounts("createContainer"), mounts("createRuntime"), "{handler}");
    assert_eq!(mounts("poststart"), mounts("createRuntime"), "{handler}");
    world.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_called_where_and_when_they_belong() {
    lives("", &["createContainer", "prestart", "createRuntime", "poststart", "poststop"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_the_node_are_told_of_hooks() {
    lives("runc", &["prestart", "createRuntime", "createContainer", "poststart", "poststop"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_ends_what_it_belongs_to() {
    let world = World::new().await;
    let out = describe(&world);
    let sandbox = world.sandbox().await;
    for (stage, told) in [
        ("createRuntime", "error running createRuntime hook"),
        ("createContainer", "error running createContainer hook"),
    ] {
        let fails = out.join(format!("fail-{stage}"));
        std::fs::write(&fails, "").unwrap();
        let config = with_device(&world, "true");
        let error = world
            .runtime
            .create_container(&sandbox, config, &world.sandbox_config())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Create);
        assert!(
            error.message.contains(told) && error.message.contains("exit status: 3"),
            "{error}"
        );
        std::fs::remove_file(&fails).unwrap();
    }
    assert!(world.runtime.list_containers().await.unwrap().is_empty());
    // What comes after the start changes nothing of it.
    for stage in ["poststart", "poststop"] {
        std::fs::write(out.join(format!("fail-{stage}")), "").unwrap();
    }
    let (ended, text) = world.output(&sandbox, with_device(&world, "echo ran")).await;
    assert_eq!((ended.exit_code, text.as_str()), (0, "ran"));
    world.finish().await;
}
