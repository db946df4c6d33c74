# PID 1 has no default handlers: only a signal it catches can end it, so httpd is its child below.
trap 'exit 0' TERM INT

# The values come from outside, and the page must stay a page. /tmp is all that can be written.
escape() { printf '%s' "$1" | /bin/busybox sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g; s/"/\&quot;/g'; }

/bin/busybox mkdir -p /tmp/www
/bin/busybox cat > /tmp/www/index.html <<PAGE
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Lab $(escape "$LAB_INSTANCE_ID")</title>
<style>
  body { font: 18px/1.5 system-ui, sans-serif; margin: 12vh auto; max-width: 34rem; padding: 0 1rem; color: #0f172a }
  h1 { font-size: 2.4rem; margin: 0 } p { color: #475569 }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.5rem; margin-top: 2rem }
  dt { color: #64748b } dd { margin: 0; font-weight: 600 }
</style>
<h1>Your lab is running</h1>
<p>This page comes from a pod of its own, for you alone.</p>
<dl>
  <dt>Lab instance</dt><dd>$(escape "$LAB_INSTANCE_ID")</dd>
  <dt>Lab</dt><dd>$(escape "$LAB_ID")</dd>
  <dt>Student</dt><dd>$(escape "$STUDENT_ID")</dd>
  <dt>Pod</dt><dd>$(escape "$HOSTNAME")</dd>
</dl>
PAGE
/bin/busybox httpd -f -p 8080 -h /tmp/www &
wait
