//! The port at which the shim takes a container's memory.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case, Lab,
    checkpoint::{run, take},
    eventually,
    workload::Workload,
};
use tokio::process::Command;

/// Connects to every port of the loopback interface that comes up, says what CRIU says first, and
/// tells whether it gets CRIU's answer.
const STRANGER: &str = r#"use Socket;
$| = 1;
my %seen;
my $first = 1;
until (-e "/tmp/exposure-stop") {
    open my $table, "<", "/proc/net/tcp" or die $!;
    while (<$table>) {
        my @words = split;
        next unless $words[3] eq "0A" and $words[1] =~ /^0100007F:(....)$/;
        my $port = hex $1;
        next if $seen{$port}++ or $first;
        socket(my $line, PF_INET, SOCK_STREAM, 0) or die $!;
        setsockopt $line, SOL_SOCKET, SO_RCVTIMEO, pack("l!l!", 5, 0);
        connect($line, sockaddr_in($port, inet_aton("127.0.0.1"))) or next;
        syswrite $line, pack("VVQ<Q<Q<", 4, 0, 0, 0, 257);
        syswrite $line, pack("VVQ<Q<Q<", 4 << 16 | 6, 0, 1, 4096, 257) . ("x" x 4096);
        my $got = sysread $line, my $answer, 16;
        print $got ? "answered" : "refused", " $port\n";
    }
    print "ready\n" if $first;
    $first = 0;
}
"#;
const STOP: &str = "/tmp/exposure-stop";
const SCRIPT: &str = "/tmp/exposure-stranger";

/// A process beside CRIU, root's or not, is not taken for it; the dump is whole all the same.
pub async fn only_criu_reaches_it(cx: Case) -> Result<()> {
    fs::write(cx.lab.path(SCRIPT), STRANGER)?;
    let mut checked = Ok(());
    for user in ["65534", "0"] {
        checked = with_stranger(&cx, user)
            .await
            .with_context(|| format!("a stranger with uid {user}"));
        if checked.is_err() {
            break;
        }
    }
    fs::remove_file(cx.lab.path(SCRIPT))?;
    checked
}

async fn with_stranger(cx: &Case, user: &str) -> Result<()> {
    let (pod, work) = (cx.pod().start().await?, Workload::memory(16));
    let container = work.start(&pod).await?;
    let output = format!("/tmp/exposure-output-{user}");
    let script = format!(
        "exec setpriv --reuid={user} --regid={user} --clear-groups -- perl {SCRIPT} >{output} 2>&1"
    );
    let mut stranger = Command::from(cx.lab.command("sh"))
        .args(["-c", &script])
        .stdout(Stdio::null())
        .spawn()?;
    let said = || fs::read_to_string(cx.lab.path(&output)).unwrap_or_default();
    let taken = async {
        eventually("the stranger", Duration::from_secs(10), || async {
            Ok(said().contains("ready").then_some(()))
        })
        .await?;
        let at = work.count(&container)?;
        let archive = take(&container, &[]).await?;
        work.is_well(&container, at).await?;
        ensure!(
            said().contains("refused"),
            "it never got to the port: {:?}",
            said()
        );
        whole(&cx.lab, &archive.path).await?;
        let last = take(&container, &["--exit"]).await?;
        let at = work.count(&container)?;
        container.wait_exit().await?;
        container.remove().await?;
        let restored = work.restore(&pod, &last).await?;
        work.went_on(&restored, at).await?;
        fs::remove_file(archive.file())?;
        fs::remove_file(last.file())?;
        Ok::<(), anyhow::Error>(())
    }
    .await;
    fs::write(cx.lab.path(STOP), "")?;
    let ended = tokio::time::timeout(Duration::from_secs(20), stranger.wait()).await;
    fs::remove_file(cx.lab.path(STOP))?;
    let said = said();
    fs::remove_file(cx.lab.path(&output))?;
    ended.context("the stranger does not end")??;
    taken?;
    ensure!(!said.contains("answered"), "taken for CRIU: {said}");
    ensure!(!said.contains("died"), "{said}");
    Ok(())
}

async fn whole(lab: &Lab, archive: &str) -> Result<()> {
    run(lab, &["kybernate", "verify", archive]).await?.ok()?;
    Ok(())
}
