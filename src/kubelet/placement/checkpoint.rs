//! What was given of the machine, on disk under a sum: a file that was damaged, or that another
//! policy wrote, is refused, for it may give the same CPUs to two containers.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a file holds.
pub trait State: Default + Serialize + DeserializeOwned {
    /// The policy that writes it.
    const POLICY: &str;
    /// What it is of, in messages.
    const WHOSE: &str;
    fn policy(&self) -> &str;
    /// 0 in files that were written without.
    fn checksum(&mut self) -> &mut u64;
    /// The text whose sum is kept.
    fn summed(&self) -> String;
}

/// FNV-1a in 32 bits, as upstream's checkpoints have it.
pub fn sum(state: &impl State) -> u64 {
    let fold = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    state.summed().bytes().fold(0x811c_9dc5, fold).into()
}

/// Why a kubelet does not start with this file, and what to do about it.
pub fn refused<T: State>(file: &Path, why: &str) -> String {
    format!(
        "could not restore state from checkpoint: {why}, please drain this node and delete the {} \
         manager checkpoint file {:?} before restarting Kubelet",
        T::WHOSE,
        file.display().to_string()
    )
}

/// What the file says; nothing where there is none.
///
/// # Errors
/// A file that cannot be relied on, and what to do about it.
pub fn read<T: State>(file: &Path) -> Result<T, String> {
    let refused = |why: String| refused::<T>(file, &why);
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(refused(error.to_string())),
    };
    let mut state: T =
        serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
    let kept = *state.checksum();
    if kept != 0 && kept != sum(&state) {
        return Err(refused("checkpoint is corrupted".to_owned()));
    }
    if state.policy() != T::POLICY {
        return Err(refused(format!(
            "configured policy {:?} differs from state checkpoint policy {:?}",
            T::POLICY,
            state.policy()
        )));
    }
    Ok(state)
}

/// That the policy which writes such a file left none when it is not the one that is chosen:
/// containers may still have what it gave them.
///
/// # Errors
/// A file that is there, and what to do about it.
pub fn unused<T: State>(file: &Path, chosen: &str) -> Result<(), String> {
    let text = std::fs::read(file).unwrap_or_default();
    let state: T = serde_json::from_slice(&text).unwrap_or_default();
    if state.policy() != T::POLICY {
        return Ok(());
    }
    let why = format!(
        "configured policy {chosen:?} differs from state checkpoint policy {:?}",
        T::POLICY
    );
    Err(refused::<T>(file, &why))
}

/// # Errors
/// What the system says.
pub fn write<T: State>(file: &Path, mut state: T) -> std::io::Result<()> {
    *state.checksum() = sum(&state);
    sys::fs::replace_file(file, &serde_json::to_vec(&state)?)
}
