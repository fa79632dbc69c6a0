use proptest::prelude::*;

use super::*;

fn identities(count: usize) -> Vec<Identity> {
    (0..count).map(|_| Identity::generate().unwrap()).collect()
}

fn header(of: &[Identity], more: &[Stanza]) -> (FileKey, String) {
    let to: Vec<_> = of.iter().map(|one| one.recipient().clone()).collect();
    Header::make(&to, more).unwrap()
}

/// Whoever knows the file key can say so for any header.
fn with_mac(key: &FileKey, text: &str) -> String {
    let covered = &text[..text.rfind("---").unwrap() + 3];
    let mac = mac(key, covered.as_bytes()).finalize().into_bytes();
    format!("{covered} {}\n", BASE64.encode(mac))
}

#[test]
fn every_recipient_opens_it_and_nobody_else() {
    for count in 1..4 {
        let all = identities(count);
        let (key, text) = header(&all, &[]);
        let read = Header::parse(format!("{text}anything").as_bytes()).unwrap();
        assert_eq!((read.recipients(), read.size()), (count, text.len()));
        for one in &all {
            assert_eq!(read.open(std::slice::from_ref(one)), Ok(key.clone()));
        }
        let strangers = identities(2);
        let error = read.open(&strangers).unwrap_err();
        assert_eq!(
            error,
            OpenError::Stranger {
                recipients: count,
                identities: 2
            }
        );
        let both = [strangers, all].concat();
        assert_eq!(read.open(&both), Ok(key));
    }
}

#[test]
fn stanzas_of_other_kinds_are_kept_and_not_taken_for_recipients() {
    for size in [0, 1, 47, 48, 49, 96, 1000] {
        let note = Stanza {
            words: vec!["note".into(), "1".into()],
            body: vec![7; size],
        };
        let one = identities(1);
        let (key, text) = header(&one, std::slice::from_ref(&note));
        let read = Header::parse(text.as_bytes()).unwrap();
        assert_eq!(read.stanza("note"), Some(&note));
        assert_eq!(read.stanza("other"), None);
        assert_eq!(read.recipients(), 1);
        assert_eq!(read.open(&one), Ok(key));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let all = identities(1);
    let note = Stanza {
        words: vec!["note".into()],
        body: b"{\"created\":\"now\"}".to_vec(),
    };
    let (_, text) = header(&all, &[note]);
    for at in 0..text.len() {
        for bit in [0, at % 8, 5] {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1 << bit;
            let opened = Header::parse(&bad).and_then(|header| header.open(&all));
            assert!(opened.is_err(), "byte {at} bit {bit}");
        }
    }
    for size in 0..text.len() {
        assert!(Header::parse(&text.as_bytes()[..size]).is_err(), "{size}");
    }
}

#[test]
fn what_the_format_does_not_allow_is_refused_though_its_mac_is_right() {
    let one = identities(1);
    let (key, good) = header(&one, &[]);
    let share = good.lines().nth(1).unwrap().to_owned();
    let wrapped = good.lines().nth(2).unwrap().to_owned();
    let zero = format!("-> X25519 {}", BASE64.encode([0; 32]));
    for (bad, reason) in [
        (good.replace('\n', "\r\n"), "no text"),
        (good.replace("v1\n", "v2\n"), "v2"),
        (good.replace("-> X", "->  X"), "empty word"),
        (good.replace("-> X", "-> X25519 X"), "one argument"),
        (good.replace("-> X", "X"), "no stanza"),
        (good.replace(&share, "-> X25519 AAAA"), "no share"),
        (good.replace(&share, &zero), "low order"),
        (good.replace(&wrapped, "AAAA"), "no wrapped key"),
        (good.replace(&wrapped, &format!("{wrapped}=")), "base64"),
        (good.replace(&wrapped, &wrapped.repeat(2)), "too long"),
        (good.replace("-> X25519", "-> x25519"), "0 recipients"),
        (good.replace("-> X25519", "-> scrypt"), "passphrase"),
        (
            good.replace(&format!("{share}\n{wrapped}\n"), ""),
            "no recipient",
        ),
    ] {
        assert_ne!(bad, good, "{reason}");
        let bad = if bad.contains('\r') {
            bad
        } else {
            with_mac(&key, &bad)
        };
        let error = Header::parse(bad.as_bytes()).and_then(|header| header.open(&one));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let forged = good.replacen("-> X25519", "-> note\n\n-> X25519", 1);
    let error = Header::parse(forged.as_bytes())
        .unwrap()
        .open(&one)
        .unwrap_err();
    assert!(error.to_string().contains("MAC"), "{error}");
    assert_eq!(
        Header::parse(with_mac(&key, &forged).as_bytes())
            .unwrap()
            .open(&one),
        Ok(key)
    );
}

#[test]
fn a_header_has_bounds() {
    assert!(matches!(
        Header::make(&[], &[]),
        Err(HeaderError::NoRecipient)
    ));
    let to = vec![identities(1)[0].recipient().clone(); 700];
    assert!(matches!(
        Header::make(&to, &[]),
        Err(HeaderError::TooLarge {
            recipients: 700,
            ..
        })
    ));
    let endless = format!("{VERSION}\n{}", "-> x\n\n".repeat(20_000));
    let error = Header::parse(endless.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("no end"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, lines in "(-> [ -~]{0,80}\n[A-Za-z0-9+/]{0,70}\n|--- [A-Za-z0-9+/]{43}\n){0,5}") {
        let _ = Header::parse(&bytes);
        if let Ok(header) = Header::parse(format!("{VERSION}\n{lines}").as_bytes()) {
            let _ = header.open(&identities(1));
        }
    }
}
