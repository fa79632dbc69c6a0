//! Installing on real nodes: from a bare containerd to a checkpoint with one command, back to the
//! bare node, and what happens when something goes wrong on the way.
//!
//! Each case has a lab of its own, laid out as kubeadm or MicroK8s lay a node out.

mod faults;
mod node;
mod whole;

use std::process::ExitCode;

use anyhow::Result;
use kybernate_integration::{Distro, lab, suite};
use libtest_mimic::{Arguments, Trial};

use node::{Layout, Node};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Every case starts a containerd of its own.
    arguments.test_threads.get_or_insert(2);
    let mut trials = Vec::new();
    for distro in Distro::ALL {
        for layout in [Layout::Kubeadm, Layout::Microk8s] {
            let mut add = |name: &str, body: fn(&Node) -> Result<()>| {
                let name = format!("{distro}/{layout}/{name}");
                trials.push(Trial::test(name.clone(), move || {
                    if let Some(reason) = lab::missing() {
                        return suite::report_skip(&name, &reason);
                    }
                    let played = Node::start(distro, layout).and_then(|node| {
                        let played = body(&node);
                        node.close().and(played)
                    });
                    played.map_err(|e| format!("{e:#}").into())
                }));
            };
            add("from_nothing_to_a_checkpoint_and_back", whole::and_back);
            if layout == Layout::Kubeadm {
                add("broken_config", faults::broken_config);
                add("restart_fails", faults::restart_fails);
                add("killed_while_restarting", faults::killed_while_restarting);
                add("full_disk", faults::full_disk);
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
