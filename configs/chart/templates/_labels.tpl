{{- define "kybernate.labels" -}}
app.kubernetes.io/name: kybernate
{{- end }}
