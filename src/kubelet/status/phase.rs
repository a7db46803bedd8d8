//! Which phase a pod is in, by how its containers are.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::ended_code;
use crate::pod::{self, Role};
use crate::restart_all;

/// `init` and `main` are in the order of the pod's spec; `ended` as in [`super::Inputs`].
pub fn phase(
    pod: &Pod,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    ended: bool,
) -> &'static str {
    // One of them will not be tried again.
    let mut init_is_over = false;
    let (mut init_pending, mut init_failed) = (0, 0);
    for (container, status) in pod::init_containers(pod).iter().zip(init) {
        if pod::is_sidecar(container) {
            init_pending += u32::from(
                status.started != Some(true) && ended_code(status.state.as_ref()).is_none(),
            );
            continue;
        }
        let state = status.state.as_ref();
        // Removed to begin anew, it says nothing.
        let waited = state.is_some_and(|state| state.waiting.is_some())
            && !restart_all::ended_for_this(status.last_state.as_ref());
        let code = ended_code(state).or(if waited {
            ended_code(status.last_state.as_ref())
        } else {
            None
        });
        match code {
            Some(0) => {}
            Some(code) => {
                init_failed += 1;
                init_is_over |= !pod::restarts_after(pod, Role::Init, container, code);
            }
            None => init_pending += 1,
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded, mut over) = (0, 0, 0, 0, 0);
    for (container, status) in pod::spec(pod).containers.iter().zip(main) {
        let state = status.state.as_ref();
        let comes_back = |code| pod::restarts_after(pod, Role::Main, container, code);
        if state.is_some_and(|state| state.running.is_some()) {
            running += 1;
        } else if let Some(code) = ended_code(state) {
            stopped += 1;
            succeeded += u32::from(code == 0);
            over += u32::from(!comes_back(code));
        } else if let Some(code) = ended_code(status.last_state.as_ref()) {
            let anew = restart_all::ended_for_this(status.last_state.as_ref());
            stopped += 1;
            over += u32::from(!anew && !comes_back(code));
        } else {
            waiting += 1;
        }
    }
    if init_is_over {
        return "Failed";
    }
    if ended {
        return if init_failed == 0 && waiting == 0 && stopped > 0 && stopped == succeeded {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    // Once a main container has run, init containers were through.
    if running + stopped == 0 && (init_pending > 0 || init_failed > 0) {
        return "Pending";
    }
    if waiting > 0 {
        return "Pending";
    }
    if running > 0 || over < stopped {
        return "Running";
    }
    if stopped == succeeded { "Succeeded" } else { "Failed" }
}
