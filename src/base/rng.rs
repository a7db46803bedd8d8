//! Chance: random bytes from the system, and what Kubernetes draws from them.

use ring::rand::{SecureRandom, SystemRandom};

/// Letters and digits of generated names: no vowels, nothing easily misread
/// (k8s.io/apimachinery, `util/rand`).
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Fills `out` with random bytes fit for keys.
pub fn fill(out: &mut [u8]) {
    // The kernel's generator is initialised long before any process of ours runs.
    SystemRandom::new().fill(out).expect("the kernel hands out random bytes");
}

pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

pub fn next_u64() -> u64 {
    u64::from_le_bytes(bytes())
}

/// A number in `0..bound`; 0 for a bound of 0.
pub fn below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { next_u64() % bound }
}

/// A number in `0.0..1.0`.
pub fn unit() -> f64 {
    (next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// `length` characters of a generated name.
pub fn suffix(length: usize) -> String {
    (0..length)
        .map(|_| char::from(NAME_ALPHABET[below(NAME_ALPHABET.len() as u64) as usize]))
        .collect()
}

/// A random UUID (RFC 9562 version 4).
pub fn uuid() -> String {
    let mut b = bytes::<16>();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let mut out = String::with_capacity(36);
    for (index, byte) in b.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        for digit in [byte >> 4, byte & 0x0f] {
            out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    out
}

/// Lower-case hexadecimal of `N` random bytes.
pub fn hex<const N: usize>() -> String {
    bytes::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}
