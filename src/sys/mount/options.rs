//! Mount options as people write them, in what mount(2) takes: flags, and text for the file
//! system.

pub const READ_ONLY: u64 = libc::MS_RDONLY;
const LAZYTIME: u64 = 1 << 25;
/// Word, flags, and whether it sets them (mount(8), "Filesystem-independent mount options").
const WORDS: [(&str, u64, bool); 24] = [
    ("ro", READ_ONLY, true),
    ("rw", READ_ONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("mand", libc::MS_MANDLOCK, true),
    ("nomand", libc::MS_MANDLOCK, false),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("relatime", libc::MS_RELATIME, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("nostrictatime", libc::MS_STRICTATIME, false),
    ("lazytime", LAZYTIME, true),
    ("nolazytime", LAZYTIME, false),
    ("silent", libc::MS_SILENT, true),
];
/// Words for those who mount, which change nothing about the mount.
const IGNORED: [&str; 7] = ["", "_netdev", "auto", "bind", "defaults", "noauto", "nofail"];

/// Flags and text of a list of options; later ones win.
pub fn split<'a>(options: impl IntoIterator<Item = &'a str>) -> (u64, String) {
    let (mut flags, mut rest) = (0, Vec::new());
    for word in options.into_iter().flat_map(|option| option.split(',')).map(str::trim) {
        match WORDS.iter().find(|(known, ..)| *known == word) {
            Some((_, flag, true)) => flags |= flag,
            Some((_, flag, false)) => flags &= !flag,
            None if IGNORED.contains(&word) => {}
            None => rest.push(word),
        }
    }
    (flags, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_flags_and_the_rest_is_the_file_systems() {
        for (options, flags, rest) in [
            (vec![], 0, ""),
            (vec!["defaults", "noatime"], libc::MS_NOATIME, ""),
            (vec!["ro,nodev", "rw"], libc::MS_NODEV, ""),
            (vec!["discard", "data=ordered", "nosuid"], libc::MS_NOSUID, "discard,data=ordered"),
            (vec!["size=1m, mode=0700"], 0, "size=1m,mode=0700"),
        ] {
            assert_eq!(split(options.iter().copied()), (flags, rest.to_owned()), "{options:?}");
        }
    }
}
