//! What the tenant's administrator runs so that an app may use a mailbox without its owner. Pure.
//!
//! As Microsoft's "Authenticate an IMAP, POP or SMTP connection using OAuth" has it: the app's service principal is made
//! known to Exchange by the object id of the *Enterprise application* (that of the App registration is another one, and
//! makes every login fail), and is given the mailbox.

use super::Check;
use crate::failure::Failure;
use crate::mailbox::Config;
use crate::microsoft::imap_replies::NOT_CONNECTED;

/// Whether these lines can mend the failure, for an app that signs in as itself.
pub(super) fn may_help(check: Check, failure: &Failure) -> bool {
    match check {
        Check::SmtpLogin | Check::ImapLogin => failure.class.needs_a_person(),
        // Exchange lets some apps in and only then finds that they have no mailbox.
        Check::ImapFolder => failure.code == NOT_CONNECTED,
        _ => false,
    }
}

/// Whether the reply itself names what is wrong, and so the advice for it comes first.
pub(super) fn is_named(failure: &Failure) -> bool {
    failure.code.ends_with(" 5.7.139")
}

/// What to do with the lines, in place of the advice for mailboxes whose owner consents.
pub(super) const REMEDY: &str = "the app may not use this mailbox as itself, or not yet: its administrator gives it the \
    application permissions SMTP.SendAsApp and IMAP.AccessAsApp of Office 365 Exchange Online, with admin consent (Entra \
    admin center › App registrations › the app › API permissions), and runs these lines in PowerShell; what was just \
    granted takes up to 2 hours to work";

/// The lines for one mailbox; none where its owner consents.
pub(super) fn lines(mailbox: &Config) -> Vec<String> {
    use crate::microsoft::Grant;
    let microsoft = &mailbox.microsoft;
    if microsoft.grant != Grant::ClientCredentials {
        return Vec::new();
    }
    let (client_id, tenant) = (quoted(&microsoft.client_id), quoted(&microsoft.tenant));
    let address = quoted(mailbox.address.as_str());
    vec![
        "# Once for the app, as the tenant's administrator:".to_owned(),
        "Install-Module ExchangeOnlineManagement, Microsoft.Graph.Applications".to_owned(),
        format!("Connect-MgGraph -TenantId {tenant} -Scopes Application.Read.All"),
        "# The object id of the Enterprise application, which is not that of the App registration:"
            .to_owned(),
        format!("$app = Get-MgServicePrincipal -Filter \"appId eq {client_id}\""),
        format!("Connect-ExchangeOnline -Organization {tenant}"),
        format!("New-ServicePrincipal -AppId {client_id} -ObjectId $app.Id -DisplayName 'outlook-relay'"),
        "# For each mailbox:".to_owned(),
        format!("Add-MailboxPermission -Identity {address} -User $app.Id -AccessRights FullAccess"),
        format!(
            "Set-CASMailbox -Identity {address} -SmtpClientAuthenticationDisabled $false -ImapEnabled $true"
        ),
    ]
}

/// A PowerShell string in which nothing is special but the quotes themselves, the curly ones included: doubled, they
/// stand for one. An address may hold one.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\u{2018}'..='\u{201B}') {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_ends_the_string() {
        assert_eq!(quoted("o'neil@example.com"), "'o''neil@example.com'");
        assert_eq!(quoted("o’neil@example.com"), "'o’’neil@example.com'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }
}
