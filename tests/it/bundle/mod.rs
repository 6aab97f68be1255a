//! Bundles: what they hold, that every change is noticed, that they appear whole or not at all.

mod about;
mod bases;
mod claims;
mod commands;
mod damage;
mod deaths;
mod flips;
mod forms;
mod merged;
mod minisign;
mod model_signing;
mod people;
mod publish;
mod seal;
