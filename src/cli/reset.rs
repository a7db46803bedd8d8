pub fn run(_: &crate::args::ResetFlags) -> crate::Result<()> {
    Ok(())
}
