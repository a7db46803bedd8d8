//! Who a container's process is: user and groups, by the image's passwd and group files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::proto::{Failure, FailureKind, UserSpec};

/// Longer files are read up to here.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves in the container's root.
pub fn resolve(user: &UserSpec, root: &Path) -> Result<Identity, Failure> {
    let read = |path: &str| {
        sys::fs::Root::open(root)
            .and_then(|root| root.read_to_string(Path::new(path), FILE_BYTES_MAX))
            .unwrap_or_default()
    };
    plan(user, &read("/etc/passwd"), &read("/etc/group"))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn plan(user: &UserSpec, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let refuse = |message: String| Failure::new(FailureKind::Create, message);
    let (user_name, group_name) = user.name.split_once(':').unwrap_or((&user.name, ""));
    let account = match user.uid {
        Some(uid) => accounts(passwd).find(|a| a.uid == uid),
        None if user_name.is_empty() => accounts(passwd).find(|a| a.uid == 0),
        None => accounts(passwd)
            .find(|a| a.name == user_name)
            .or_else(|| accounts(passwd).find(|a| user_name.parse() == Ok(a.uid))),
    };
    let uid = match (user.uid, &account) {
        (Some(uid), _) => uid,
        (None, Some(account)) => account.uid,
        (None, None) if user_name.is_empty() => 0,
        (None, None) => user_name.parse().map_err(|_| {
            refuse(format!("unable to find user {user_name}: no matching entries in passwd file"))
        })?,
    };
    let named_group = if user.uid.is_none() { group_name } else { "" };
    let gid = match (user.gid, named_group, &account) {
        (Some(gid), _, _) => gid,
        (None, "", Some(account)) => account.gid,
        (None, "", None) => 0,
        (None, name, _) => groups(group)
            .find(|(n, _, _)| *n == name)
            .map(|(_, gid, _)| gid)
            .or_else(|| name.parse().ok())
            .ok_or_else(|| {
                refuse(format!("unable to find group {name}: no matching entries in group file"))
            })?,
    };
    let mut all = vec![gid];
    if let Some(account) = account.as_ref().filter(|_| !user.strict) {
        all.extend(
            groups(group)
                .filter(|(_, _, members)| members.split(',').any(|m| m == account.name))
                .map(|(_, gid, _)| gid),
        );
    }
    all.extend(&user.groups);
    let mut groups = Vec::new();
    for gid in all {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    let home = account.map_or("/", |a| a.home).to_string();
    Ok(Identity { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:web,root\n";

    #[test]
    fn users_are_found_as_other_runtimes_find_them() {
        let named = |name: &str| UserSpec { name: name.into(), ..UserSpec::default() };
        let is = |user: UserSpec| plan(&user, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups));
        assert_eq!(is(named("")).unwrap(), (0, 0, vec![0, 40]));
        assert_eq!(is(named("web")).unwrap(), (33, 34, vec![34, 40]));
        assert_eq!(is(named("web:logs")).unwrap(), (33, 40, vec![40]));
        assert_eq!(is(named("1000:2000")).unwrap(), (1000, 2000, vec![2000]));
        assert_eq!(is(named("33")).unwrap(), (33, 34, vec![34, 40]));
        let strict = UserSpec {
            uid: Some(33),
            gid: Some(7),
            groups: vec![9],
            strict: true,
            name: "root".into(),
        };
        assert_eq!(is(strict).unwrap(), (33, 7, vec![7, 9]));
        let unknown = is(named("nobody-here")).unwrap_err();
        assert!(unknown.message.contains("no matching entries in passwd file"));
    }
}
