//! The bytes of handshake, keys and packets, so that no change to them goes unnoticed. The answers come from a second
//! implementation, written in Python over `hmac`, `hashlib` and OpenSSL from the description of the protocol.

use gateway::proto::tunnel::handshake::{Initiator, respond};
use gateway::proto::tunnel::keys::Key;
use gateway::proto::tunnel::random::Random;
use gateway::proto::tunnel::seal::{REKEY_US, Session};
use gateway::proto::tunnel::wire::{Answer, Cipher, Id, Offer, ServiceName};

/// What two ends with the secret `a secret` say, the one with random bytes from 32 times 01, the other 02.
struct KnownAnswers {
    cipher: Cipher,
    offer: &'static str,
    answer: &'static str,
    /// `frames`, as the first packet, and as the first of epoch 1.
    forth: [&'static str; 2],
    back: [&'static str; 2],
}

const KEY_ID: &str = "6b728f689c05";

const KNOWN_ANSWERS: [KnownAnswers; 2] = [
    KnownAnswers {
        cipher: Cipher::Aes256Gcm,
        offer: "6b728f689c0500000000000045f71f7be0c620f4dd0f8c80fe7533bd4c13235ab0dd08552398a2312e6a2e1f1aa1a649e64d\
            d98bfb24f8cb024d27ff8e6d1f1d1a8a2d1f42f0d605ad05f757c4ac286836a7705fdf6948ee6276bc9891b3db844257128a\
            f275ceb4d3ba463741f81d6b6810a43e99845b08367b4f53b69c55b2e5ca4a31a8",
        answer: "a1a2a3a4a5a6000000000000a3fa902132abe4332b6fc2a1cd8b902f3c5c62b0b4739b285f7bf9ece537171f118aa6022b1b\
            a01aa6fc7b901e5b9fa578d597676b86e2af3c",
        forth: [
            "b1b2b3b4b5b600000000000113f47dff33b64296a536f7da234c9d429c8b74bb0f97",
            "b1b2b3b4b5b6000000400000f24c0c28a9dffce2b131e5faff39e1a3d2b52f122242",
        ],
        back: [
            "a1a2a3a4a5a6000000000001c992ce8b953696635286614a2a90541e52dbb4745e18",
            "a1a2a3a4a5a60000004000007f5b4fac3209ba30846087d1af5402d9526d800c78ed",
        ],
    },
    KnownAnswers {
        cipher: Cipher::ChaCha20Poly1305,
        offer: "6b728f689c0500000000000045f71f7be0c620f4dd0f8c80fe7533bd4c13235ab0dd08552398a2312e6a2e1f1aa0a649e64d\
            d98bfb24f8cb024d27ff8e6d1f1d1a8a2d1f42f0d605ad05f757c4ac286836a7705fdf6948ee6276bc9891b3db844257128a\
            f275ceb4d3ba463741f81d6b6810a43e9998398ffc332bc58dd521185f62669794",
        answer: "a1a2a3a4a5a6000000000000a3fa902132abe4332b6fc2a1cd8b902f3c5c62b0b4739b285f7bf9ece537171f118aa6022b1b\
            a21aa6edaa10f58cca7add58846bdff5c8b868",
        forth: [
            "b1b2b3b4b5b60000000000019ba9a9e916867ae40e6a23d58fa61d38dfa7b6eca37a",
            "b1b2b3b4b5b6000000400000ceafeecb6b8ac3b8f6dd9b829bc531f94b6a10cb5e18",
        ],
        back: [
            "a1a2a3a4a5a6000000000001f061561b43c8c94d8e1f10ce5e97dad1ec3726642550",
            "a1a2a3a4a5a6000000400000caae899ddccf8ff60f213d10ee73ffbc66250a63f53c",
        ],
    },
];

#[test]
fn handshakes_and_packets_are_what_another_implementation_makes_them() {
    for known in &KNOWN_ANSWERS {
        let key = Key::from_secret(b"a secret");
        assert_eq!(hex(&key.id().0), KEY_ID);
        let (mut initiator, offer) = Initiator::new(&key, &known.offer(), &mut Random::new([1; 32]));
        assert_eq!(hex(&offer), known.offer);
        let (_, responder) = respond(&key, &offer, &mut Random::new([2; 32])).expect("the same key");
        let (answer, mut theirs) = responder.answer(0, &known.answer());
        assert_eq!(hex(&answer), known.answer);
        let (_, mut ours) = initiator.finish(0, &answer).expect("it is the answer");
        assert_eq!(packets(&mut ours), known.forth);
        assert_eq!(packets(&mut theirs), known.back);
    }
}

impl KnownAnswers {
    fn offer(&self) -> Offer {
        let service = ServiceName::new("game").expect("a name");
        Offer { id: Id(*b"\xa1\xa2\xa3\xa4\xa5\xa6"), has_aes: self.cipher == Cipher::Aes256Gcm, service }
    }

    fn answer(&self) -> Answer {
        let id = Id(*b"\xb1\xb2\xb3\xb4\xb5\xb6");
        Answer { id, cipher: self.cipher, wants_addresses: true, tcp_ports: 2, udp_ports: 1 }
    }
}

/// The first of epoch 0, and the first of epoch 1.
fn packets(session: &mut Session) -> [String; 2] {
    [0, REKEY_US].map(|now| {
        session.handle_timeout(now);
        let mut packet = Vec::new();
        let start = session.begin_packet(&mut packet);
        packet.extend_from_slice(b"frames");
        session.finish_packet(&mut packet, start).expect("numbers are left");
        hex(&packet)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
