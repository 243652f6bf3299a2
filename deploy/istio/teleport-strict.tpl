{{- /*
  Laid over `teleport-sidecar`: without the directory of credential files that
  Istio's agent would turn to when it next starts.
*/ -}}
{{- $native := ne (index .ObjectMeta.Annotations `sidecar.istio.io/nativeSidecar` | default (printf "%t" .NativeSidecars)) "false" }}
spec:
  {{ if $native }}initContainers{{ else }}containers{{ end }}:
  - name: istio-proxy
    volumeMounts:
    - mountPath: /var/run/secrets/workload-spiffe-credentials
      $patch: delete
  - name: svid-watchdog
    volumeMounts:
    - mountPath: /var/run/secrets/workload-spiffe-credentials
      $patch: delete
  volumes:
  - name: workload-certs
    $patch: delete
