//! A node that restores only what somebody it trusts has signed.

use std::fs;

use anyhow::{Context, Result, ensure};
use kybernate_integration::{
    Case,
    checkpoint::{run, take},
    workload::Workload,
};

/// Keys for this test, made by `openssl genpkey -algorithm ed25519`.
const TRUSTED: [&str; 2] = [
    concat!(
        "-----BEGIN PRIVATE KEY-----\n",
        "MC4CAQAwBQYDK2VwBCIEIJ/x5TpMhLFeWtHCPf0ghczzaoPnW3zMwRMbv43bC6ac\n",
        "-----END PRIVATE KEY-----\n"
    ),
    concat!(
        "-----BEGIN PUBLIC KEY-----\n",
        "MCowBQYDK2VwAyEAs4IQ3d9se6S+6Jk7s5CTW6ilKKzt85Ezdq1YhVHQux0=\n",
        "-----END PUBLIC KEY-----\n"
    ),
];
const STRANGER: &str = concat!(
    "-----BEGIN PRIVATE KEY-----\n",
    "MC4CAQAwBQYDK2VwBCIEIDZAK16YhoOXzNfCWBu6gWkQIPbRa2jdwAE4CMck969h\n",
    "-----END PRIVATE KEY-----\n"
);

const KEYS: &str = "/etc/kybernate/keys";
const SETTINGS: &str = "/etc/kybernate/config.toml";

pub async fn only_what_is_signed(cx: Case) -> Result<()> {
    let pod = cx.pod().start().await?;
    let work = Workload::counter();
    let container = work.start(&pod).await?;
    let at = work.count(&container)?;
    let archive = take(&container, &["--exit"]).await?;
    container.wait_exit().await?;

    let key = |name: &str| format!("{KEYS}/{name}");
    fs::create_dir_all(cx.lab.path(KEYS))?;
    for (name, text) in [
        ("trusted", TRUSTED[0]),
        ("trusted.pub", TRUSTED[1]),
        ("stranger", STRANGER),
    ] {
        fs::write(cx.lab.path(key(name)), text)?;
    }
    let before = fs::read_to_string(cx.lab.path(SETTINGS))?;
    let policy = format!(
        "[restore]\nrequire_signature = true\ntrusted_keys = [{:?}]\n",
        key("trusted.pub")
    );
    fs::write(cx.lab.path(SETTINGS), format!("{before}{policy}"))?;
    let checked = async {
        let refused = |found: Result<_>| -> Result<String> {
            let error = found.err().context("restored all the same")?;
            Ok(format!("{error:#}"))
        };
        let error = refused(work.restore_attempt(&pod, &archive, 1).await)?;
        ensure!(error.contains("signed by nobody"), "{error}");

        let (stranger, trusted) = (key("stranger"), key("trusted"));
        let sign = ["kybernate", "sign", &archive.path, "--key"];
        run(&cx.lab, &[&sign[..], &[&stranger]].concat())
            .await?
            .ok()?;
        let error = refused(work.restore_attempt(&pod, &archive, 2).await)?;
        ensure!(error.contains("no trusted key"), "{error}");

        run(&cx.lab, &[&sign[..], &[&trusted]].concat())
            .await?
            .ok()?;
        let public = key("trusted.pub");
        let verify = ["kybernate", "verify", &archive.path, "--key", &public];
        let said = run(&cx.lab, &verify).await?.ok()?;
        ensure!(said.contains("signed by"), "{said}");
        let restored = work.restore_attempt(&pod, &archive, 3).await?;
        work.went_on(&restored, at).await
    };
    let checked = checked.await;
    fs::write(cx.lab.path(SETTINGS), before)?;
    fs::remove_dir_all(cx.lab.path(KEYS))?;
    checked.map(drop)
}
