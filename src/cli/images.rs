pub fn run(_: crate::args::ImagesCommand) -> crate::Result<()> {
    Ok(())
}
