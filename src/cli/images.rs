//! `coracle images`: what a running server has, or what lies on disk where none runs.

pub(crate) mod pull;

use runtime::cri::{Image, ImageService};
use runtime::images::prune::Pruned;
use runtime::images::{Images, Registries};
use serde_json::{Value, json};

use crate::args::{HostFlags, ImagesCommand};
use crate::paths::Paths;
use crate::{Error, Result, control};

pub fn run(command: ImagesCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Error::failed("start the runtime", err))?;
    runtime.block_on(async {
        match command {
            ImagesCommand::Import { host, files } => import(&host, &files).await,
            ImagesCommand::List { host } => list(&host).await,
            ImagesCommand::Pull { host, private_registry, images } => {
                pull::run(&host, &private_registry, &images).await
            }
            ImagesCommand::Export { host, output, images } => export(&host, &output, &images).await,
            ImagesCommand::Prune { host } => prune(&host).await,
            ImagesCommand::Remove { host, images } => remove(&host, &images).await,
        }
    })
}

async fn on_disk(host: &HostFlags) -> Result<Images> {
    let paths = Paths::new(&host.data_dir, &host.run_dir);
    Images::open(&paths.image_store(), Registries::default())
        .await
        .map_err(|err| Error::failed("open the images", err))
}

async fn import(host: &HostFlags, files: &[std::path::PathBuf]) -> Result<()> {
    for file in files {
        let absolute = std::path::absolute(file)
            .map_err(|err| Error::failed(format!("find {}", file.display()), err))?;
        let body = json!({"path": absolute});
        let asked = control::ask(&host.run_dir, http::Method::POST, "/images/import", &body).await;
        let doing = format!("import {}", file.display());
        let ids: Vec<String> = match asked.map_err(|err| Error::failed(doing.clone(), err))? {
            Some(ids) => serde_json::from_value(ids).unwrap_or_default(),
            None => on_disk(host)
                .await?
                .import_file(&absolute)
                .await
                .map_err(|err| Error::failed(doing, err))?,
        };
        for id in ids {
            println!("{id}");
        }
    }
    Ok(())
}

async fn export(host: &HostFlags, output: &std::path::Path, images: &[String]) -> Result<()> {
    let doing = format!("export to {}", output.display());
    let failing = |err| Error::failed(doing.clone(), err);
    let absolute = std::path::absolute(output)
        .map_err(|err| Error::failed(format!("find {}", output.display()), err))?;
    let body = json!({"path": absolute, "images": images});
    let asked = control::ask(&host.run_dir, http::Method::POST, "/images/export", &body).await;
    if asked.map_err(failing)?.is_none() {
        let store = on_disk(host).await?;
        let written = store.export_file(images, &absolute).await;
        written.map_err(|err| Error::failed(doing, err))?;
    }
    Ok(())
}

async fn remove(host: &HostFlags, images: &[String]) -> Result<()> {
    for image in images {
        let body = json!({"image": image});
        let asked = control::ask(&host.run_dir, http::Method::POST, "/images/remove", &body).await;
        let doing = format!("remove {image}");
        if asked.map_err(|err| Error::failed(doing.clone(), err))?.is_none() {
            let store = on_disk(host).await?;
            if store.find(image).is_none() {
                return Err(Error::Usage(format!("image \"{image}\": not found")));
            }
            store.remove_image(image).await.map_err(|err| Error::failed(doing, err))?;
        }
        println!("{image}");
    }
    Ok(())
}

async fn prune(host: &HostFlags) -> Result<()> {
    let asked = control::ask(&host.run_dir, http::Method::POST, "/images/prune", &Value::Null);
    let asked = asked.await.map_err(|err| Error::failed("prune the images", err))?;
    // Without a server nobody knows which containers will be taken up again.
    let told = asked.ok_or_else(|| {
        Error::Usage("no server runs here to say which images are in use; start it first".into())
    })?;
    let pruned: Pruned =
        serde_json::from_value(told).map_err(|err| Error::failed("read the answer", err))?;
    for image in &pruned.images {
        let name = image.names.first().unwrap_or(&image.id);
        println!("{name:<60} {:>10}", size(image.bytes));
    }
    println!("removed {} images, freed {}", pruned.images.len(), size(pruned.bytes));
    Ok(())
}

async fn list(host: &HostFlags) -> Result<()> {
    let asked = control::ask(&host.run_dir, http::Method::GET, "/images", &Value::Null).await?;
    let images: Vec<Image> = match asked {
        Some(images) => serde_json::from_value(images).unwrap_or_default(),
        None => on_disk(host)
            .await?
            .list_images()
            .await
            .map_err(|err| Error::failed("list the images", err))?,
    };
    println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = size(image.size);
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        for name in names {
            println!("{name:<60} {id:<14} {size:>10}");
        }
        if names.is_empty() {
            println!("{:<60} {id:<14} {size:>10}", "<none>");
        }
    }
    Ok(())
}

/// `12.3MB`, in powers of ten as image tools show it.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.2}GB", bytes as f64 / 1e9),
    }
}
