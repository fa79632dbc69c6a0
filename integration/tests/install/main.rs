//! Installing on real nodes: from a bare containerd to a checkpoint with one command, back to the
//! bare node, and what happens when something goes wrong on the way.
//!
//! Each case has a lab of its own, laid out as kubeadm or MicroK8s lay a node out.

mod faults;
mod node;
mod package;
mod whole;

use std::process::ExitCode;

use anyhow::Result;
use kybernate_integration::{Distro, lab, suite};
use libtest_mimic::{Arguments, Trial};

use node::{Layout, Node};

/// A case that needs no node.
type Check = fn() -> Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Every case starts a containerd of its own.
    arguments.test_threads.get_or_insert(2);
    let mut trials = Vec::new();
    let packages: [(&str, Check); 5] = [
        ("sums", package::sums),
        ("tarball", package::tarball),
        ("rpm", package::rpm),
        ("bill_of_materials", package::bill_of_materials),
        ("image_layout", package::image_layout),
    ];
    for (name, body) in packages {
        let name = format!("package/{name}");
        trials.push(Trial::test(name.clone(), move || {
            if let Some(reason) = lab::missing().or_else(package::missing) {
                return suite::report_skip(&name, &reason);
            }
            body().map_err(|e| format!("{e:#}").into())
        }));
    }
    for distro in Distro::ALL {
        for layout in [Layout::Kubeadm, Layout::Microk8s] {
            let mut add = |name: &str, body: fn(&Node) -> Result<()>| {
                let name = format!("{distro}/{layout}/{name}");
                trials.push(Trial::test(name.clone(), move || {
                    if let Some(reason) = lab::missing().or_else(package::missing) {
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
            add("checkpoint_through_the_hooks", whole::with_hooks);
            if layout == Layout::Kubeadm {
                add("broken_config", faults::broken_config);
                add("restart_fails", faults::restart_fails);
                add("killed_while_restarting", faults::killed_while_restarting);
                add("full_disk", faults::full_disk);
                add("upgrade", whole::upgrade);
                add("deb", package::deb);
                add("image", package::image);
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    package::forget();
    conclusion.exit_code()
}
