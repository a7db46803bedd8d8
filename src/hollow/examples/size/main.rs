//! Measures a server at the size of large clusters, with nodes that are simulated.
//!
//!     size CORACLE [MEASURE...]
//!
//! CORACLE is the executable. Each measure has an empty server and nodes of its own and
//! prints a line or two; without a name all are taken. `schedule:NODES:PODS:KIND`,
//! `scale:DEPLOYMENTS:REPLICAS:NODES`, `namespace:OBJECTS`, `lost:PODS` and `hold:NODES:PODS`
//! take one with other numbers; `hold:NODES:PODS:bound` has no need of a scheduler. Asserts nothing but that the work is done.

#![allow(clippy::unwrap_used)]

mod cluster;
mod measures;
mod pods;

use std::path::Path;

use pods::Kind;

const SCHEDULED: [(u32, usize); 2] = [(1_000, 5_000), (5_000, 10_000)];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(executable) = arguments.next() else {
        eprintln!("usage: size CORACLE [schedule|scale|namespace|lost|hold]...");
        std::process::exit(2);
    };
    let mut wanted: Vec<String> = arguments.collect();
    if wanted.is_empty() {
        wanted = ["schedule", "scale", "namespace", "lost", "hold"].map(String::from).into();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for measure in wanted {
            one(Path::new(&executable), &measure).await;
        }
    });
}

async fn one(executable: &Path, measure: &str) {
    let parts: Vec<&str> = measure.split(':').collect();
    let number = |at: usize, default: usize| {
        parts.get(at).map_or(default, |text| text.parse().expect("a number"))
    };
    match parts[0] {
        "schedule" if parts.len() == 4 => {
            let kind = Kind::named(parts[3]).expect("a kind of pods");
            measures::schedule(executable, number(1, 0) as u32, number(2, 0), kind).await;
        }
        "schedule" => {
            for (nodes, count) in SCHEDULED {
                for kind in Kind::ALL {
                    measures::schedule(executable, nodes, count, kind).await;
                }
            }
        }
        "scale" => {
            let nodes = number(3, 1_000) as u32;
            measures::scale(executable, number(1, 100), number(2, 50), nodes).await;
        }
        "namespace" => measures::namespace(executable, number(1, 5_000)).await,
        "lost" => measures::lost(executable, number(1, 100)).await,
        "hold" => {
            let (nodes, count) = (number(1, 5_000) as u32, number(2, 50_000));
            measures::hold(executable, nodes, count, parts.get(3) == Some(&"bound")).await;
        }
        other => panic!("there is no measure {other:?}"),
    }
}
