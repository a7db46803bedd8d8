//! Images and the credentials for them.

use crate::cri;
use crate::wire::images as wire;

use super::wrapped;

pub fn image_to(image: &cri::Image) -> wire::Image {
    // `user:group` names the user first.
    let user = image.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse().ok() };
    wire::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: wrapped(uid),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: image.pinned,
    }
}

pub fn image_from(image: wire::Image) -> cri::Image {
    let user = match (image.uid, image.username) {
        (Some(uid), _) => uid.value.to_string(),
        (None, name) => name,
    };
    cri::Image {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        user,
        pinned: image.pinned,
    }
}

pub fn auth_from(auth: wire::AuthConfig) -> cri::AuthConfig {
    cri::AuthConfig {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

pub fn auth_to(auth: &cri::AuthConfig) -> wire::AuthConfig {
    wire::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        server_address: String::new(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_an_image_is_a_number_or_a_name() {
        for (user, uid, name, back) in [
            ("", Some(0), "", "0"),
            ("0", Some(0), "", "0"),
            ("1001:1002", Some(1001), "", "1001"),
            ("web", None, "web", "web"),
            ("web:web", None, "web", "web"),
        ] {
            let image = cri::Image { user: user.into(), size: 5, ..Default::default() };
            let on_wire = image_to(&image);
            assert_eq!(on_wire.uid.as_ref().map(|it| it.value), uid, "{user}");
            assert_eq!(on_wire.username, name, "{user}");
            let read = image_from(on_wire);
            assert_eq!((read.user.as_str(), read.size), (back, 5));
        }
    }

    #[test]
    fn credentials_survive_both_ways() {
        let auth = cri::AuthConfig {
            username: "u".into(),
            password: "p".into(),
            auth: "a".into(),
            identity_token: "i".into(),
            registry_token: "r".into(),
        };
        let back = auth_from(auth_to(&auth));
        assert_eq!(format!("{back:?}"), format!("{auth:?}"));
    }
}
