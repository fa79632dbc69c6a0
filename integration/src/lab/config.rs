//! containerd's and CNI's settings in a lab.

use super::{Distro, HOOKED_RUNTIME, Handler, LabOptions};
use crate::image::catalog;

/// containerd's config: version 2 for 1.7, version 3 for 2.x.
pub(super) fn containerd(distro: Distro, options: &LabOptions, handlers: &[Handler]) -> String {
    let level = &options.log_level;
    let (version, runtime, cni, pause) = match distro {
        Distro::Trixie => (
            2,
            "io.containerd.grpc.v1.cri",
            "io.containerd.grpc.v1.cri",
            format!(
                "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = '{}'\n",
                catalog::PAUSE
            ),
        ),
        Distro::Forky => (
            3,
            "io.containerd.cri.v1.runtime",
            "io.containerd.cri.v1.runtime",
            format!(
                "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{}'\n\
                 [plugins.'io.containerd.cri.v1.runtime']\n",
                catalog::PAUSE
            ),
        ),
    };
    // restrict_oom_score_adj: labs run without CAP_SYS_RESOURCE. disable_apparmor: a profile
    // would be loaded into the host's kernel.
    let mut text = format!(
        "version = {version}\n\
         root = '/var/lib/containerd'\n\
         state = '/run/containerd'\n\
         [debug]\nlevel = '{level}'\n\
         {pause}\
         restrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         [plugins.'{cni}'.cni]\n{}\
         conf_dir = '/etc/cni/net.d'\n\
         [plugins.'{runtime}'.containerd]\n\
         default_runtime_name = 'runc'\n",
        match distro {
            Distro::Trixie => "bin_dir = '/usr/lib/cni'\n",
            Distro::Forky => "bin_dirs = ['/usr/lib/cni']\n",
        },
    );
    if distro == Distro::Trixie {
        // On by default in 2.x.
        text.push_str("[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n");
    }
    for handler in handlers {
        text.push_str(&format!(
            "[plugins.'{runtime}'.containerd.runtimes.{handler}]\n"
        ));
        text.push_str(match handler {
            Handler::Runc => "runtime_type = 'io.containerd.runc.v2'\n",
            // In containerd's PATH, where the runtime type is looked for.
            Handler::Kybernate | Handler::KybernateHooked => {
                "runtime_type = 'io.containerd.runc.v2'\n\
                 runtime_path = '/usr/local/bin/containerd-shim-kybernate-v1'\n"
            }
            Handler::KybernateTyped => "runtime_type = 'io.containerd.kybernate.v1'\n",
        });
        text.push_str("container_annotations = ['kybernate.io/*']\n");
        let binary = match handler {
            Handler::Runc | Handler::Kybernate => continue,
            Handler::KybernateTyped => "runc",
            Handler::KybernateHooked => HOOKED_RUNTIME,
        };
        text.push_str(&format!(
            "[plugins.'{runtime}'.containerd.runtimes.{handler}.options]\n\
             BinaryName = '{binary}'\nSystemdCgroup = false\n"
        ));
    }
    text
}

/// One bridge for all pods of a lab; the lab's network namespace has no way out.
pub(super) const CNI: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "lab0",
      "isGateway": true,
      "ipMasq": false,
      "hairpinMode": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;
