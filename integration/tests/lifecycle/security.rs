//! What a container may not do, and what it may when asked for.

use anyhow::{Result, ensure};
use kybernate_hooks::cri::v1::{
    Capability, Int64Value, SecurityProfile, security_profile::ProfileType,
};
use kybernate_integration::{Case, Suite};

pub fn add(suite: Suite) -> Suite {
    suite
        .case("seccomp", seccomp)
        .case("masked_and_readonly_paths", masked_and_readonly_paths)
        .case("readonly_rootfs", readonly_rootfs)
        .case("privileged", privileged)
        .case("capabilities", capabilities)
        .case("user_and_groups", user_and_groups)
        .case("no_new_privileges", no_new_privileges)
        .case("sysctls", sysctls)
}

async fn seccomp(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    for (name, profile, mode) in [
        ("default", ProfileType::RuntimeDefault, "2"),
        ("unconfined", ProfileType::Unconfined, "0"),
    ] {
        let app = pod
            .container(name)
            .security(|security| {
                security.seccomp = Some(SecurityProfile {
                    profile_type: profile.into(),
                    localhost_ref: String::new(),
                });
            })
            .shell("awk '/^Seccomp:/{print $2}' /proc/self/status; sleep 1000")
            .start()
            .await?;
        app.wait_stdout(&format!("{mode}\n")).await?;
        // The profile holds for execs as well.
        let exec = app
            .shell("awk '/^Seccomp:/{print $2}' /proc/self/status")
            .await?;
        ensure!(exec == mode, "{name}: {exec}");
    }
    Ok(())
}

async fn masked_and_readonly_paths(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    ensure!(app.shell("wc -c </proc/keys").await? == "0");
    ensure!(app.shell("ls /sys/firmware | wc -l").await? == "0");
    for path in [
        "/proc/sys/kernel/domainname",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm",
    ] {
        let output = app
            .exec(&["sh", "-c", &format!("echo >{path}/x || echo >{path}")])
            .await?;
        ensure!(output.exit_code != 0, "{path} is writable");
    }
    Ok(())
}

async fn readonly_rootfs(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let shared = format!("/var/lib/kybernate/writable-{}", pod.id);
    std::fs::create_dir_all(cx.lab.path(&shared))?;
    let app = pod
        .container("app")
        .mount(&shared, "/data")
        .security(|security| security.readonly_rootfs = true)
        .shell("sleep 1000")
        .start()
        .await?;
    let output = app.exec(&["touch", "/tmp/x"]).await?;
    ensure!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    app.shell("touch /data/x").await?;
    ensure!(cx.lab.path(&shared).join("x").exists());
    Ok(())
}

async fn privileged(cx: Case) -> Result<()> {
    let pod = cx.pod().privileged().start().await?;
    let app = pod
        .container("app")
        .security(|security| {
            security.privileged = true;
            security.masked_paths.clear();
            security.readonly_paths.clear();
        })
        .shell("sleep 1000")
        .start()
        .await?;
    app.shell("mkdir /mnt && mount -t tmpfs none /mnt && touch /mnt/x")
        .await?;
    app.shell("mknod /tmp/null c 1 3 && echo >/tmp/null")
        .await?;
    let plain = pod.container("plain").shell("sleep 1000").start().await?;
    let output = plain
        .exec(&["mount", "-t", "tmpfs", "none", "/tmp"])
        .await?;
    ensure!(output.exit_code != 0, "an ordinary container may mount");
    Ok(())
}

async fn capabilities(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .security(|security| {
            security.capabilities = Some(Capability {
                drop_capabilities: vec!["ALL".into()],
                add_capabilities: vec!["NET_BIND_SERVICE".into()],
                ..Default::default()
            });
        })
        .shell("sleep 1000")
        .start()
        .await?;
    let expected = "0000000000000400";
    for process in ["1", "self"] {
        let script = format!("awk '/^CapEff:/{{print $2}}' /proc/{process}/status");
        let found = app.shell(&script).await?;
        ensure!(found == expected, "{process}: {found}");
    }
    Ok(())
}

async fn user_and_groups(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let app = pod
        .container("app")
        .security(|security| {
            security.run_as_user = Some(Int64Value { value: 1000 });
            security.run_as_group = Some(Int64Value { value: 1000 });
            security.supplemental_groups = vec![3000];
        })
        .shell("sleep 1000")
        .start()
        .await?;
    let found = app.shell("id -u; id -g; id -G").await?;
    // 2000 is the worker's in the image's /etc/group.
    let mut words: Vec<_> = found.split_whitespace().collect();
    words[2..].sort_unstable();
    ensure!(
        words == ["1000", "1000", "1000", "2000", "3000"],
        "{words:?}"
    );
    Ok(())
}

async fn no_new_privileges(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    for (name, set) in [("with", true), ("without", false)] {
        let app = pod
            .container(name)
            .security(|security| security.no_new_privs = set)
            .shell("sleep 1000")
            .start()
            .await?;
        let found = app
            .shell("awk '/^NoNewPrivs:/{print $2}' /proc/1/status")
            .await?;
        ensure!(found == u32::from(set).to_string(), "{name}: {found}");
    }
    Ok(())
}

async fn sysctls(cx: Case) -> Result<()> {
    let pod = cx
        .pod()
        .edit(|config| {
            let linux = config.linux.get_or_insert_default();
            linux
                .sysctls
                .insert("net.ipv4.ip_local_port_range".into(), "20000\t20999".into());
        })
        .start()
        .await?;
    let app = pod.container("app").shell("sleep 1000").start().await?;
    let found = app
        .shell("cat /proc/sys/net/ipv4/ip_local_port_range")
        .await?;
    ensure!(found == "20000\t20999", "{found:?}");
    Ok(())
}
